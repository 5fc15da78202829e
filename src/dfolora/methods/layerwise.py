"""Derivative-free search, block after block.

Over LoRA factors it is C-LoRA with CMA-ES and F-LoRA with LoTFWA (Jin, Liu, Tan 2024); over soft
prompts with CMA-ES it is BBT (one block, at the input) and BBTv2 (a block a layer).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Batch, Encode, Encoder, Rows
from dfolora.engine import Engine, check_objective, classify
from dfolora.errors import UserError
from dfolora.methods.method import FewShotData, Predictor, Progress
from dfolora.model import Architecture, Backbone
from dfolora.search import (
    INCUMBENTS,
    SCHEDULES,
    SELECTIONS,
    DevPoint,
    DevSelection,
    Memo,
    PopulationEvaluator,
    Remembered,
    forgetful,
    tune,
)
from dfolora.search.optim import Cma, Optimizer, OptimizerFactory
from dfolora.search.subspace import LoraSubspaceSpec, Subspace, SubspaceSpec
from dfolora.seeding import stream
from dfolora.validation import choice, whole


@dataclass(frozen=True, kw_only=True)
class LayerwiseSearch:
    """Searches the blocks' vectors in turn with forward passes only."""

    subspace: SubspaceSpec = field(default_factory=LoraSubspaceSpec)
    optimizer: OptimizerFactory = Cma
    budget: int = 6000
    """Passes over the train set; 0 is the manual prompt."""
    objective: str = "ce"
    """A name in ``OBJECTIVES``."""
    incumbent: str = "improving"
    """A name in ``INCUMBENTS``."""
    schedule: str = "round_robin"
    """A name in ``SCHEDULES``."""
    selection: str = "incumbent"
    """A name in ``SELECTIONS``."""
    dev_interval: int = 100
    """Calls between two looks at the dev set."""
    patience: int | None = None
    """Calls without a higher dev score after which the search stops; None for no limit."""

    seeded: ClassVar[bool] = True
    resumable: ClassVar[bool] = True

    def check(self, architecture: Architecture) -> None:
        check_objective(self.objective)
        choice(self.incumbent, "incumbent", INCUMBENTS)
        choice(self.schedule, "schedule", SCHEDULES)
        choice(self.selection, "selection", SELECTIONS)
        whole(self.budget, "budget", least=0)
        whole(self.dev_interval, "dev_interval", least=1)
        if self.patience is not None:
            # With less, the search would stop before it had looked again.
            whole(self.patience, "patience", least=self.dev_interval)
        self.subspace.check(architecture)
        self._check_budget(architecture)

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        return self.subspace.encoder(plain)

    def begin(
        self, backbone: Backbone, data: FewShotData, seed: int, memo: Memo = forgetful
    ) -> "Search":
        """Draw the subspace."""
        self.check(backbone.architecture)
        return Search(self, backbone, data, seed, memo)

    def block_optimizer(self, block: int, architecture: Architecture, seed: int) -> Optimizer:
        """The optimizer of one block, with its own random stream."""
        return self.optimizer(
            dim=self.subspace.size(architecture),
            budget=max(1, self.budget // self.subspace.blocks(architecture)),
            rng=stream(seed, f"search/{block}"),
        )

    def _check_budget(self, architecture: Architecture) -> None:
        population = self.block_optimizer(0, architecture, 0).population
        what, blocks = "one generation", 1
        if self.schedule == "released":
            what, blocks = "one round of all layers", self.subspace.blocks(architecture)
        needed = blocks * population + {"improving": 1, "mean": 2, "released": 0}[self.incumbent]
        if 0 < self.budget < needed:
            raise UserError(
                f"budget={self.budget} is smaller than {what}, which needs {needed} calls with a "
                f"population of {population}, those for the incumbents included; raise budget, "
                f"take a smaller population, or set budget=0 to search nothing."
            )


class Search:
    """One layer-wise search."""

    def __init__(
        self,
        method: LayerwiseSearch,
        backbone: Backbone,
        data: FewShotData,
        seed: int,
        memo: Memo,
    ) -> None:
        self._method = method
        self._backbone = backbone
        self._label_ids = data.label_ids
        self._subspace = method.subspace.build(
            backbone, data.train.input_ids, data.train.attention_mask, seed
        )
        self._dim = method.subspace.size(backbone.architecture)
        self._optimizers = [
            method.block_optimizer(block, backbone.architecture, seed)
            for block in range(self._subspace.blocks)
        ]
        train, dev = (self._evaluator(batch, data.metric) for batch in (data.train, data.dev))
        self._train = Remembered(train, memo, "train")
        self._selection = DevSelection(
            Remembered(dev, memo, "dev"),
            rule=method.selection,
            interval=method.dev_interval,
            patience=method.patience,
        )

    def __iter__(self) -> Iterator[Progress]:
        """Search until the budget or the patience is spent."""
        method, selection = self._method, self._selection
        generations = tune(
            self._train,
            self._optimizers,
            dim=self._dim,
            budget=method.budget,
            incumbent=method.incumbent,
            schedule=method.schedule,
        )
        for generation in generations:
            looks = selection.see(generation)
            yield Progress(step=generation, looks=looks, selected=selection.best)
            if selection.stalled:
                break

    def predictor(self) -> Predictor:
        """The solution that the dev set chose."""
        chosen = self._selection.best
        if chosen is None:
            zero = np.zeros((self._subspace.blocks, self._dim))
            chosen = self._selection.look(0, zero)
        return adapted(self._backbone, self._label_ids, self._subspace, chosen.solution, dev=chosen)

    def _evaluator(self, batch: Batch, metric: str) -> PopulationEvaluator:
        return PopulationEvaluator(
            Engine(self._backbone, batch, self._label_ids),
            self._subspace,
            batch.labels,
            objective=self._method.objective,
            metric=metric,
        )


def adapted(
    backbone: Backbone,
    label_ids: Tensor,
    subspace: Subspace,
    solution: NDArray[np.float64],
    dev: DevPoint | None = None,
) -> Predictor:
    """The model with one solution's interventions.

    Args:
        backbone: The frozen model.
        label_ids: ``(C,)``, the label words' token ids.
        subspace: Search vectors to interventions.
        solution: ``(L, d)``.
        dev: The look at dev that chose it; None for one that nobody searched.
    """
    return Predictor(
        logits=lambda batch: classify(backbone, label_ids, batch, subspace.incumbents(solution)),
        write=lambda folder: subspace.save(folder, backbone, solution),
        dev=dev,
        searched=0 if dev is None else solution.size,
        stored=subspace.stored,
    )
