"""Gradients for the layers that matter most, a search without them for the others.

The idea is Hi-ZFO's (arXiv:2601.05501, 2026), of which no code and no rule beyond the abstract
could be found: how layers are ranked and calls shared out here is ours, and so are the results.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import floor, isfinite
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dfolora.data import Encode, Encoder, Rows
from dfolora.engine import Engine, classify
from dfolora.errors import UserError
from dfolora.methods.gradient.lora import Lora
from dfolora.methods.gradient.trainable import Attached, label_words, through_model
from dfolora.methods.gradient.training import (
    PASSES,
    Epoch,
    Trained,
    Training,
    TrainingSpec,
    readers,
)
from dfolora.methods.gradient.tuning import check_trainable, within_memory
from dfolora.methods.method import FewShotData, Predictor, Progress
from dfolora.model import Architecture, Backbone, LayerLora, LoraFactors, save_adapter
from dfolora.search import DevPoint, Generation, Memo, PopulationEvaluator, forgetful, tune
from dfolora.search.optim import OptimizerFactory, ZerothOrder
from dfolora.search.subspace import JointSubspace, ParameterSubspaceSpec
from dfolora.seeding import stream
from dfolora.validation import not_negative, positive, share, whole

Z = "z"
"""The name of the search's center among the parameters."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many layers are trained, and what the calls are spent on."""

    trained: int
    """Layers that AdamW trains."""
    ranking: int
    """Calls that rank the layers."""
    epochs: int
    """Of ``PASSES`` calls each."""
    searched: int
    """Calls of the search."""


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """LoRA in every layer, trained by AdamW in some and searched as one block in the others.

    Layers are ranked by I_l = sum |g * W| over the weights W of the maps that LoRA adapts, g being
    the gradient of the mean loss over the train set at the start. LoRA's own parameters give no
    rank there: B is 0, and A has no gradient. One pass with backward ranks them, 3 calls.

    Epochs and generations of the search take turns. With all layers trained this is
    ``GradientTuning`` of LoRA, and with none of them a search of ``ParameterSubspaceSpec`` with
    ``layers_per_block=all`` and ``incumbent=center``; neither ranks.
    """

    trained: Lora = field(default_factory=Lora)
    """The LoRA of every layer."""
    share: float = 0.5
    """rho, the share of the layers that are trained, rounded to a number of layers."""
    gradient_calls: float = 0.6
    """The share of the calls that go into epochs, rounded down to whole ones; the search has the
    rest. With pairs 0.6 is an epoch, a pair, an epoch, ..."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    batch_size: int = 16
    """Rows of a minibatch."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """The largest gradient norm; larger gradients are scaled down."""
    optimizer: OptimizerFactory = field(
        default_factory=lambda: partial(
            ZerothOrder, directions=1, sides="two", scale="none", momentum=0.0, sigma=0.01, lr=0.01
        )
    )
    """Of the search; by default MeZO."""
    budget: int = 6000
    """Calls in all, an epoch being three. They are met exactly, unless all layers are trained."""
    dev_interval: int = 100
    """Calls between two looks at the dev set."""

    seeded: ClassVar[bool] = True
    resumable: ClassVar[bool] = False

    def check(self, architecture: Architecture) -> None:
        share(self.share, "method.share")
        share(self.gradient_calls, "method.gradient_calls")
        positive(self.learning_rate, "method.learning_rate")
        whole(self.batch_size, "method.batch_size", least=1)
        not_negative(self.weight_decay, "method.weight_decay")
        positive(self.clip, "method.clip")
        whole(self.budget, "budget", least=1)
        whole(self.dev_interval, "dev_interval", least=1)
        check_trainable(architecture, through_model=True)
        self.trained.check(architecture)
        self.space.check(architecture)
        plan = self.plan(architecture)
        generation = 0
        if dim := (architecture.layers - plan.trained) * self.space.size(architecture):
            optimizer = self.optimizer(dim=dim, budget=1, rng=stream(0, "search/0"))
            generation = optimizer.population
        if (plan.trained and not plan.epochs) or plan.searched < generation:
            raise UserError(
                f"budget={self.budget} leaves {plan.epochs} epochs and {plan.searched} calls of a "
                f"search, which needs {generation} for a generation: raise budget, or change "
                f"method.gradient_calls={self.gradient_calls} or method.share={self.share}."
            )

    @property
    def space(self) -> ParameterSubspaceSpec:
        """What is searched of a layer: the numbers of its LoRA."""
        lora = self.trained
        return ParameterSubspaceSpec(
            rank=lora.rank, targets=lora.targets, scaling=lora.alpha / lora.rank
        )

    def plan(self, architecture: Architecture) -> Plan:
        """What the budget is spent on, for such a model."""
        layers = architecture.layers
        trained = floor(self.share * layers + 0.5)
        if trained == layers:
            return Plan(trained=trained, ranking=0, epochs=self.budget // PASSES, searched=0)
        if trained == 0:
            return Plan(trained=0, ranking=0, epochs=0, searched=self.budget)
        left = max(0, self.budget - PASSES)
        epochs = floor(left * self.gradient_calls / PASSES + 1e-9)  # 0.6 of 10 calls is two
        return Plan(trained=trained, ranking=PASSES, epochs=epochs, searched=left - PASSES * epochs)

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        return self.trained.encoder(plain)

    def begin(
        self, backbone: Backbone, data: FewShotData, seed: int, memo: Memo = forgetful
    ) -> "HybridFit":
        self.check(backbone.architecture)
        return HybridFit(self, backbone, data, seed)


class HybridFit:
    """The fit of a hybrid."""

    def __init__(self, method: Hybrid, backbone: Backbone, data: FewShotData, seed: int) -> None:
        self._method = method
        self._backbone = backbone
        self._data = data
        self._seed = seed
        self._plan = method.plan(backbone.architecture)
        self._scores: Sequence[float] = [0.0] * backbone.architecture.layers
        self._top: Sequence[int] = range(backbone.architecture.layers)
        self._subspace: JointSubspace | None = None  # of the other layers
        self._chosen: DevPoint | None = None

    def __iter__(self) -> Iterator[Progress]:
        """Fit; the model is changed until the last step, or until this iterator is closed.

        Raises:
            UserError: Training diverged, or memory ran out.
        """
        method, plan = self._method, self._plan
        spec = TrainingSpec(
            learning_rates=[method.learning_rate],
            epochs=plan.epochs,
            batch_size=method.batch_size,
            weight_decay=method.weight_decay,
            clip=method.clip,
        )
        with within_memory(f"method.batch_size={method.batch_size}"):
            if plan.ranking:
                self._scores = importance(self._backbone, self._data, method.trained)
            self._share_out()
            with self._attached() as attached:
                training = Training(attached, self._data, spec, self._seed, self._backbone.tokens)
                training.calls = plan.ranking
                for progress in self._steps(training, attached.parameters):
                    self._chosen = progress.selected
                    yield progress

    def _share_out(self) -> None:
        """Choose the trained layers, and make one block of the others."""
        layers = range(len(self._scores))
        ranked = sorted(layers, key=lambda layer: -self._scores[layer])
        self._top = sorted(ranked[: self._plan.trained])
        rest = [layer for layer in layers if layer not in self._top]
        if not rest:
            return
        train = self._data.train
        inner = self._method.space.build(
            self._backbone, train.input_ids, train.attention_mask, self._seed
        )

        def make(candidates: NDArray[np.float64]) -> dict[int, LayerLora]:
            parts = np.split(candidates, len(rest), axis=1)
            return {
                layer: inner.intervention(layer, np.ascontiguousarray(part))
                for layer, part in zip(rest, parts, strict=True)
            }

        self._subspace = JointSubspace(make, self._dim, self._backbone)

    @property
    def _dim(self) -> int:
        """Numbers in the factors of all layers that are searched."""
        architecture = self._backbone.architecture
        searched = architecture.layers - len(self._top)
        return searched * self._method.space.size(architecture)

    @contextmanager
    def _attached(self) -> Iterator[Attached]:
        """LoRA of the trained layers; that of the others is fixed at 0, and beside it the center.

        The center is no parameter of the model, but kept and chosen with them.
        """
        method, backbone = self._method, self._backbone
        prefixes = tuple(
            f"base_model.model.{backbone.architecture.family.layers}.{layer}."
            for layer in self._top
        )
        with method.trained.attached(backbone, self._data.label_ids, self._seed) as attached:
            parameters = {}
            for name, parameter in attached.parameters.items():
                if name.startswith(prefixes):
                    parameters[name] = parameter
                else:
                    parameter.requires_grad_(False)
            if self._subspace is not None:
                z = torch.zeros(self._dim, dtype=torch.float64)
                parameters[Z] = nn.Parameter(z, requires_grad=False)
            yield replace(attached, parameters=parameters)

    def _steps(
        self, training: Training, parameters: Mapping[str, nn.Parameter]
    ) -> Iterator[Progress]:
        """Epochs and generations in turn; whichever has spent the smaller share comes next."""
        method, plan = self._method, self._plan
        epochs, generations = training.epochs(method.learning_rate), self._generations()
        trained = searched = 0
        looks = self._look(training, parameters, 0.0)
        while trained < plan.epochs or searched < plan.searched:
            before = training.calls
            step: Epoch | Generation
            if trained < plan.epochs and trained * plan.searched <= searched * plan.epochs:
                with added(self._backbone, self._found(parameters)):
                    step = next(epochs)
                trained += 1
                if not isfinite(step.loss):
                    raise UserError(
                        f"Training diverged: a loss or a gradient was no finite number. Choose a "
                        f"lower method.learning_rate={method.learning_rate}, or precision=fp32."
                    )
            else:
                generation = next(generations)
                with torch.no_grad():
                    parameters[Z].copy_(torch.from_numpy(generation.solution[0]))
                training.calls += generation.calls - searched
                searched = generation.calls
                step = replace(generation, calls=training.calls)
            last = (trained, searched) == (plan.epochs, plan.searched)
            if last or training.calls // method.dev_interval > before // method.dev_interval:
                looks = looks + self._look(training, parameters, method.learning_rate)
            yield Progress(step=step, looks=looks, selected=training.best)
            looks = []

    def _look(
        self, training: Training, parameters: Mapping[str, Tensor], learning_rate: float
    ) -> list[DevPoint]:
        with added(self._backbone, self._found(parameters)):
            return training.look(learning_rate)

    def _generations(self) -> Iterator[Generation]:
        """The search, beside whatever the trained layers have come to."""
        if self._subspace is None:
            return iter(())
        data, budget = self._data, self._plan.searched
        # PEFT's modules take part in the engine's passes, so what enters a layer changes: no carry.
        engine = Engine(self._backbone, data.train, data.label_ids, carry=False)
        evaluate = PopulationEvaluator(
            engine, self._subspace, data.train.labels, objective="ce", metric=data.metric
        )
        optimizer = self._method.optimizer(
            dim=self._dim, budget=budget, rng=stream(self._seed, "search/0")
        )
        return tune(evaluate, [optimizer], dim=self._dim, budget=budget, incumbent="center")

    def _found(self, parameters: Mapping[str, Tensor]) -> dict[int, LayerLora]:
        """The factors at the search's center."""
        if self._subspace is None:
            return {}
        return self._subspace.interventions(0, parameters[Z].detach().numpy()[None])

    def predictor(self) -> Predictor:
        """What the dev set chose; the start where it has not been looked at."""
        if self._chosen is not None:
            solution: Trained = self._chosen.solution
        else:
            with self._attached() as attached:
                solution = Trained.of(attached.parameters)
        backbone, lora = self._backbone, self._method.trained
        changes = self._found(solution.tensors) | {
            layer: lora.factors(backbone, layer, solution.tensors) for layer in self._top
        }
        size = sum(map(Tensor.numel, solution.tensors.values()))
        return Predictor(
            logits=lambda batch: classify(backbone, self._data.label_ids, batch, changes),
            write=lambda folder: save_adapter(folder, backbone, changes.values()),
            dev=self._chosen,
            searched=size,
            stored=size,
            found={f"importance/{layer}": score for layer, score in enumerate(self._scores)},
        )


def importance(backbone: Backbone, data: FewShotData, lora: Lora) -> list[float]:
    """I_l of every layer: sum |g * W| over the modules that LoRA adapts, g of the mean loss.

    Raises:
        UserError: One is no finite number.
    """
    family, layers = backbone.architecture.family, range(backbone.architecture.layers)
    weights = [
        [
            backbone.model.get_submodule(f"{family.layers}.{layer}.{module}").weight
            for module in backbone.architecture.whole_modules(lora.targets)
        ]
        for layer in layers
    ]
    model = Attached(
        parameters={}, reader=through_model(backbone, label_words(backbone, data.label_ids))
    )
    labels = data.train.labels
    with _differentiated([weight for own in weights for weight in own]):
        for rows, read in readers(model, data.train, backbone.tokens):
            logits = read(torch.arange(len(rows)))
            own = functional.cross_entropy(logits, labels[rows].to(logits.device), reduction="sum")
            (own / len(labels)).backward()
        scores = [
            sum(float((weight.grad.float() * weight.detach()).abs().sum()) for weight in own)
            for own in weights
        ]
    if not all(map(isfinite, scores)):
        raise UserError(
            "The gradient of the unadapted model's loss is not finite, so its layers cannot be "
            "ranked. Check the model's weights, or use precision=fp32."
        )
    return scores


@contextmanager
def _differentiated(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """A context in which these frozen weights get gradients."""
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None


@contextmanager
def added(backbone: Backbone, changes: Mapping[int, LayerLora]) -> Iterator[None]:
    """A context in which the model's own forward has these factors, one candidate's."""
    with ExitStack() as hooks:
        for layer, lora in changes.items():
            for name, factors in lora.factors.items():
                linear = backbone.layers[layer].maps[name]
                hook = partial(_add, linear.columns, factors)
                hooks.enter_context(linear.module.register_forward_hook(hook))
        yield


def _add(
    columns: slice | Tensor,
    factors: LoraFactors,
    _module: nn.Module,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> Tensor:
    x = inputs[0]
    changed = output.clone()
    changed[..., columns] += x @ factors.down[0].to(x.dtype) @ factors.up[0].to(x.dtype)
    return changed
