"""Derivative-free search, block after block.

Over LoRA factors it is C-LoRA with CMA-ES and F-LoRA with LoTFWA (Jin, Liu, Tan 2024); over soft
prompts with CMA-ES it is BBT (one block, at the input) and BBTv2 (a block a layer).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Batch, Encode, Encoder, Rows
from dfolora.engine import (
    AGAINST_OTHERS,
    NORMALISED,
    Affine,
    Engine,
    SolvedReadout,
    check_objective,
    check_readout,
    classify,
)
from dfolora.errors import UserError
from dfolora.methods.label_words import words_by_margin
from dfolora.methods.method import FewShotData, Predictor, Progress
from dfolora.methods.readouts import mapped, save_readout
from dfolora.model import Architecture, Backbone
from dfolora.search import (
    INCUMBENTS,
    MEASURED,
    SELECTIONS,
    Answer,
    DevPoint,
    DevSelection,
    Memo,
    PopulationEvaluator,
    Remembered,
    RoundRobin,
    Schedule,
    forgetful,
    tune,
)
from dfolora.search.optim import Cma, Optimizer, OptimizerFactory
from dfolora.search.subspace import Grouped, LoraSubspaceSpec, Subspace, SubspaceSpec
from dfolora.seeding import stream
from dfolora.validation import choice, whole

LABEL_WORDS = "label_words.json"
"""Beside an adapter: the tokens of each class, if they are not the task's label words alone."""


@dataclass(frozen=True, kw_only=True)
class LayerwiseSearch:
    """Searches the blocks' vectors in turn with forward passes only."""

    subspace: SubspaceSpec = field(default_factory=LoraSubspaceSpec)
    optimizer: OptimizerFactory = Cma
    budget: int = 6000
    """Passes over the train set; 0 is the manual prompt."""
    objective: str = "ce"
    """A name in ``OBJECTIVES``."""
    readout: SolvedReadout = field(default_factory=SolvedReadout)
    """Solved on the train set for every candidate: what it gives is what the objective sees, what
    dev is scored by, and a part of the solution. No call: each pass over dev repeats one over the
    train set, which is not counted either."""
    incumbent: str = "improving"
    """A name in ``INCUMBENTS``."""
    schedule: Schedule = field(default_factory=RoundRobin)
    """Whose turn it is."""
    layers_per_block: int | Literal["all"] = 1
    """How many layers' vectors, one after another, are searched as one block."""
    words: int = 1
    """Label words a class, the task's own included; the others are found by one of the calls."""
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
        check_readout(self.readout)
        if not self.readout.plain and self.objective in NORMALISED:
            raise UserError(
                f"objective={self.objective} compares the label words with all other tokens, which "
                f"readout={self.readout.form} does not map; choose objective=ce or readout=plain."
            )
        choice(self.incumbent, "incumbent", INCUMBENTS)
        choice(self.selection, "selection", SELECTIONS)
        whole(self.budget, "budget", least=0)
        whole(self.dev_interval, "dev_interval", least=1)
        whole(self.words, "words", least=1)
        if self.words > 1 and self.objective in AGAINST_OTHERS:
            raise UserError(
                f"objective={self.objective} asks whether the model says the label word, and "
                f"words={self.words} gives each class several; set words=1, or objective=ce_vocab."
            )
        if self.patience is not None:
            # With less, the search would stop before it had looked again.
            whole(self.patience, "patience", least=self.dev_interval)
        self.subspace.check(architecture)
        self._check_blocks(architecture)
        optimizer = self.block_optimizer(0, architecture, 0)
        if optimizer.symmetric and self.subspace.even:
            raise UserError(
                "The optimizer learns from pairs c + u, c - u alone, and the search starts from "
                "c = 0, where this subspace makes the same model of both: it would stay there. "
                "Take one that is linear in z (subspace=core, subspace=factors_up; for "
                "method=compose method.subspace.form=products), or an optimizer whose steps are "
                "one-sided (optimizer.sides=one)."
            )
        self._check_budget(self.blocks(architecture), optimizer.population)

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        self.readout.check_classes(train.labels, len(plain.prompt.label_words))
        return self.subspace.encoder(plain)

    def begin(
        self, backbone: Backbone, data: FewShotData, seed: int, memo: Memo = forgetful
    ) -> "Search":
        """Draw the subspace."""
        self.check(backbone.architecture)
        return Search(self, backbone, data, seed, memo)

    @property
    def spent(self) -> int:
        """Calls before the search."""
        return int(self.words > 1 and self.budget > 0)

    def blocks(self, architecture: Architecture) -> int:
        """The number of blocks, L."""
        return self.subspace.blocks(architecture) // self._together(architecture)

    def size(self, architecture: Architecture) -> int:
        """The length of a block's vector, d."""
        return self.subspace.size(architecture) * self._together(architecture)

    def build(self, backbone: Backbone, data: FewShotData, seed: int) -> Subspace:
        """Draw the subspace of these blocks."""
        train = data.train
        built = self.subspace.build(backbone, train.input_ids, train.attention_mask, seed)
        together = self._together(backbone.architecture)
        return built if together == 1 else Grouped(built, together)

    def block_optimizer(self, block: int, architecture: Architecture, seed: int) -> Optimizer:
        """The optimizer of one block, with its own random stream."""
        weights = self.schedule.weights(self.blocks(architecture))
        return self.optimizer(
            dim=self.size(architecture),
            budget=max(1, int(self.budget * weights[block] // sum(weights))),
            rng=stream(seed, f"search/{block}"),
        )

    def optimizers(self, architecture: Architecture, seed: int) -> list[Optimizer]:
        """Those of all blocks."""
        blocks = range(self.blocks(architecture))
        return [self.block_optimizer(block, architecture, seed) for block in blocks]

    def _together(self, architecture: Architecture) -> int:
        layers = self.subspace.blocks(architecture)
        return layers if self.layers_per_block == "all" else self.layers_per_block

    def _check_blocks(self, architecture: Architecture) -> None:
        layers = self.subspace.blocks(architecture)
        if self.layers_per_block != "all":
            whole(self.layers_per_block, "layers_per_block", least=1)
            if layers % self.layers_per_block:
                divisors = [str(size) for size in range(1, layers + 1) if layers % size == 0]
                raise UserError(
                    f"layers_per_block={self.layers_per_block} does not divide the {layers} layers "
                    f"that {type(self.subspace).__name__} has vectors for; choose all, or one of "
                    f"{', '.join(divisors)}."
                )
        self.schedule.check(self.blocks(architecture))
        if self.schedule.informed and self.incumbent not in MEASURED:
            raise UserError(
                f"The schedule {type(self.schedule).__name__} is told the loss after each turn, "
                f"which incumbent={self.incumbent} does not measure; choose incumbent="
                f"{' or '.join(MEASURED)}, or another schedule."
            )

    def _check_budget(self, blocks: int, population: int) -> None:
        turns = self.schedule.least(blocks)
        what = "one generation" if turns == 1 else "one round of all layers"
        of_incumbents = {"improving": 1, "mean": 2}.get(self.incumbent, 0)
        needed = self.spent + turns * population + of_incumbents
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
        self._data = data
        self._label_ids = data.label_ids
        if method.spent:
            self._label_ids = self._more_words(data.train, memo)
        self._seed = seed
        self._subspace = method.build(backbone, data, seed)
        self._dim = method.size(backbone.architecture)
        self._optimizers = method.optimizers(backbone.architecture, seed)
        train, dev = map(self._evaluator, (data.train, data.dev))
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
        order = method.schedule.order(
            len(self._optimizers),
            population=self._optimizers[0].population,
            budget=method.budget,
            rng=stream(self._seed, "schedule"),
        )
        generations = tune(
            self._train,
            self._optimizers,
            dim=self._dim,
            budget=method.budget,
            incumbent=method.incumbent,
            order=order,
            spent=method.spent,
        )
        start: Sequence[DevPoint] = ()
        if method.budget and method.incumbent not in MEASURED and method.selection != "released":
            # The first generation is a step away from the start, which dev may prefer to all.
            start = [selection.look(0, np.zeros((len(self._optimizers), self._dim)))]
        for generation in generations:
            looks = [*start, *selection.see(generation)]
            start = ()
            yield Progress(step=generation, looks=looks, selected=selection.best)
            if selection.stalled:
                break

    def predictor(self) -> Predictor:
        """The solution that the dev set chose."""
        chosen = self._selection.best
        if chosen is None:
            zero = np.zeros((self._subspace.blocks, self._dim))
            chosen = self._selection.look(0, zero)
        weights = self._method.schedule.weights(self._subspace.blocks)
        return adapted(
            self._backbone,
            self._label_ids,
            self._subspace,
            chosen.solution,
            readout=self._readout(chosen.solution),
            dev=chosen,
            searched=self._dim * sum(weight > 0 for weight in weights),
        )

    def _more_words(self, train: Batch, memo: Memo) -> Tensor:
        """The label words of each class, ``(C, W)``."""
        encode, among = self._data.encode, None
        if isinstance(encode, Encoder):
            among = encode.texts_tokens(len(self._backbone.embedding))

        def compute() -> Answer:
            logits = Engine(self._backbone, train, self._label_ids).vocabulary()[:, 0].cpu()
            found = words_by_margin(
                logits, train.labels, self._label_ids, self._method.words, among=among
            )
            return {"label_ids": found.tolist()}

        answer = memo({"label_words": self._method.words}, compute)
        return torch.tensor(answer["label_ids"], device=self._label_ids.device)

    def _readout(self, solution: NDArray[np.float64]) -> Affine | None:
        """That of a solution; None if it is plain."""
        if self._method.readout.plain:
            return None
        train, adapter = self._data.train, self._subspace.incumbents(solution)
        logits = classify(self._backbone, self._label_ids, train, adapter)
        return self._method.readout.solve(logits[None].cpu(), train.labels)[0]

    def _evaluator(self, batch: Batch) -> PopulationEvaluator:
        method, train = self._method, self._data.train
        engine = Engine(
            self._backbone,
            batch,
            self._label_ids,
            normalised=method.objective in NORMALISED,
            others=method.objective in AGAINST_OTHERS,
        )
        solved_on = None
        if not method.readout.plain and batch is not train:
            solved_on = Engine(self._backbone, train, self._label_ids, carry=False), train.labels
        return PopulationEvaluator(
            engine,
            self._subspace,
            batch.labels,
            objective=method.objective,
            metric=self._data.metric,
            readout=method.readout,
            solved_on=solved_on,
        )


def adapted(
    backbone: Backbone,
    label_ids: Tensor,
    subspace: Subspace,
    solution: NDArray[np.float64],
    *,
    readout: Affine | None = None,
    dev: DevPoint | None = None,
    searched: int = 0,
) -> Predictor:
    """The model with one solution's interventions.

    Args:
        backbone: The frozen model.
        label_ids: ``(C,)`` or ``(C, W)``, the label words' token ids.
        subspace: Search vectors to interventions.
        solution: ``(L, d)``.
        readout: Of the logits; None for them as they are.
        dev: The look at dev that chose it; None for one that nobody searched.
        searched: Numbers that were searched for it.
    """

    def write(folder: Path) -> None:
        subspace.save(folder, backbone, solution)
        if label_ids.ndim > 1:
            (folder / LABEL_WORDS).write_text(json.dumps(label_ids.tolist()) + "\n")
        if readout is not None:
            save_readout(folder, readout)

    def logits(batch: Batch) -> Tensor:
        plain = classify(backbone, label_ids, batch, subspace.incumbents(solution))
        return mapped(plain, readout)

    return Predictor(
        logits=logits,
        write=write,
        dev=dev,
        searched=searched,
        stored=subspace.stored,
    )
