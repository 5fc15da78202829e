"""Derivative-free search, block after block.

Over LoRA factors it is C-LoRA with CMA-ES and F-LoRA with LoTFWA (Jin, Liu, Tan 2024); over soft
prompts with CMA-ES it is BBT (one block, at the input) and BBTv2 (a block a layer).
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from operator import mul
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Batch, Encode, Encoder, Rows, part
from dfolora.engine import (
    AGAINST_OTHERS,
    NORMALISED,
    Affine,
    Engine,
    Shape,
    SolvedReadout,
    check_objective,
    check_readout,
    classify,
)
from dfolora.errors import UserError
from dfolora.methods.adapted import adapted
from dfolora.methods.label_words import words_by_margin
from dfolora.methods.method import FewShotData, Predictor, Progress
from dfolora.model import Architecture, Backbone
from dfolora.search import (
    INCUMBENTS,
    MEASURED,
    SELECTIONS,
    Answer,
    DevPoint,
    DevSelection,
    Evaluation,
    Evaluator,
    Memo,
    Penalised,
    PerFlop,
    PerRow,
    PopulationEvaluator,
    Price,
    Remembered,
    RoundRobin,
    Schedule,
    forgetful,
    minibatches,
    tune,
)
from dfolora.search.optim import Cma, Optimizer, OptimizerFactory
from dfolora.search.subspace import Grouped, LoraSubspaceSpec, Subspace, SubspaceSpec
from dfolora.seeding import stream
from dfolora.validation import choice, not_negative, positive, subset, whole

STARTING = 2
"""Passes before the first generation: the first solution's own, and one up to the first layer."""
WALK = (
    "The search starts from z = 0, where this subspace makes the same model of u and -u, and the "
    "optimizer's steps are equally long whatever the losses: the first go where chance has it, "
    "until z is of the order of 1. Take a subspace that is linear in z (subspace=core, "
    "subspace=factors_up; for method=compose method.subspace.form=products)."
)
UNITS = ("calls", "flops")
"""What a budget may be counted in."""


@dataclass(frozen=True, kw_only=True)
class LayerwiseSearch:
    """Searches the blocks' vectors in turn with forward passes only."""

    subspace: SubspaceSpec = field(default_factory=LoraSubspaceSpec)
    optimizer: OptimizerFactory = Cma
    budget: int = 6000
    """Calls: passes of one candidate over the train set; 0 is the manual prompt."""
    budget_in: str = "calls"
    """``calls``, whatever a candidate changes; or ``flops``, in which the budget is that of so many
    candidates that pass the whole model: those of late layers pass less, so there are more."""
    batch_size: int | None = None
    """Train rows that each turn's candidates are evaluated on, drawn anew, a share of a call; None
    for all. Of a turn of two asks both are of the same rows."""
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
    layers: Sequence[int] | None = None
    """The layers that are searched, from 0; the others stay at z = 0. None: all."""
    layers_per_block: int | Literal["all"] = 1
    """How many layers' vectors, one after another, are searched as one block; the last block has
    what is left."""
    bound: float | None = None
    """Each number stays within +- bound, where candidates are reflected; None for no bound."""
    penalty: float = 0.0
    """This times the mean absolute number of a solution is added to its loss on the train set."""
    words: int = 1
    """Label words a class, the task's own included; others than the task names are found by one of
    the calls."""
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
        choice(self.budget_in, "budget_in", UNITS)
        choice(self.incumbent, "incumbent", INCUMBENTS)
        choice(self.selection, "selection", SELECTIONS)
        whole(self.budget, "budget", least=0)
        whole(self.dev_interval, "dev_interval", least=1)
        whole(self.words, "words", least=1)
        if self.bound is not None:
            positive(self.bound, "method.bound")
        not_negative(self.penalty, "method.penalty")
        self._check_fractions()
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
        if len(set(self.dims(architecture))) > 1:  # what the last one may be too short for
            self.block_optimizer(self.blocks(architecture) - 1, architecture, 0)
        if self.batch_size is not None and not optimizer.forgetful:
            raise UserError(
                f"The optimizer compares losses of different turns, and with "
                f"batch_size={self.batch_size} each turn's are of other rows; choose one that does "
                f"not (optimizer=cma, zo, mezo, ...), or batch_size=null."
            )
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
        if self.batch_size is not None and self.batch_size > len(train):
            raise UserError(
                f"batch_size={self.batch_size} is more than the {len(train)} train rows; choose at "
                f"most as many, or null for all."
            )
        named = min(map(len, plain.prompt.more_words), default=self.words)
        if named < self.words - 1:
            raise UserError(
                f"words={self.words} needs {self.words - 1} words of each class beside its label "
                f"word, and the prompt's more_words has {named} of some; give it more, or none, so "
                f"that they are found."
            )
        self.readout.check_classes(train.labels, len(plain.prompt.label_words))
        return self.subspace.encoder(plain)

    def begin(
        self, backbone: Backbone, data: FewShotData, seed: int, memo: Memo = forgetful
    ) -> "Search":
        """Draw the subspace.

        Warns:
            RuntimeWarning: The first steps go where chance has it.
        """
        self.check(backbone.architecture)
        even = self.budget > 0 and self.subspace.even
        if even and self.block_optimizer(0, backbone.architecture, 0).normalised:
            warnings.warn(WALK, RuntimeWarning, stacklevel=2)
        return Search(self, backbone, data, seed, memo)

    def spent(self, more_ids: Sequence[Sequence[int]] = ()) -> int:
        """Calls before the search: the one that finds words, unless the task has them."""
        return int(self.words > 1 and self.budget > 0 and not more_ids)

    def blocks(self, architecture: Architecture) -> int:
        """The number of blocks, L."""
        return len(self.groups(architecture))

    def size(self, architecture: Architecture) -> int:
        """The length of a block's vector, d."""
        return self.dims(architecture)[0]

    def dims(self, architecture: Architecture) -> list[int]:
        """The numbers of each block that are searched: d, and of the last block maybe fewer."""
        one = self.subspace.size(architecture)
        return [one * len(group) for group in self.groups(architecture)]

    def groups(self, architecture: Architecture) -> list[list[int]]:
        """Of which of the subspace's blocks each block of the search is made."""
        searched = sorted(self.layers or range(self.subspace.blocks(architecture)))
        size = len(searched) if self.layers_per_block == "all" else self.layers_per_block
        return [searched[first : first + size] for first in range(0, len(searched), size)]

    def build(self, backbone: Backbone, data: FewShotData, seed: int) -> Subspace:
        """Draw the subspace of these blocks."""
        train = data.train
        built = self.subspace.build(backbone, train.input_ids, train.attention_mask, seed)
        groups = self.groups(backbone.architecture)
        return built if len(groups) == built.blocks else Grouped(built, groups)

    def block_optimizer(
        self,
        block: int,
        architecture: Architecture,
        seed: int,
        prices: Sequence[float] | None = None,
    ) -> Optimizer:
        """The optimizer of one block, with its own random stream."""
        optimizer = self.optimizer(
            dim=self.dims(architecture)[block],
            budget=max(1, int(self.candidates(architecture, prices)[block])),
            rng=stream(seed, f"search/{block}"),
        )
        optimizer.bound = self.bound
        return optimizer

    def optimizers(
        self, architecture: Architecture, seed: int, prices: Sequence[float] | None = None
    ) -> list[Optimizer]:
        """Those of all blocks."""
        blocks = range(self.blocks(architecture))
        return [self.block_optimizer(block, architecture, seed, prices) for block in blocks]

    def candidates(
        self, architecture: Architecture, prices: Sequence[float] | None = None
    ) -> list[float]:
        """How many of each block the budget may be expected to pay for; None: a call each."""
        weights = self.schedule.weights(self.blocks(architecture))
        round_calls = sum(map(mul, weights, prices or [1.0] * len(weights)))
        return [self.budget * weight // round_calls for weight in weights]

    def prices(self, architecture: Architecture, price: Price) -> list[float]:
        """What a candidate of each block costs, in a turn of the optimizer's."""
        population = self.block_optimizer(0, architecture, 0).population
        blocks = range(self.blocks(architecture))
        return [float(price.usual(block, population)) for block in blocks]

    def passes(self, shape: Shape, lengths: Sequence[int]) -> float:
        """Passes of a candidate through the whole model whose arithmetic is the whole search's.

        Args:
            shape: Of the model.
            lengths: Tokens of each train row.
        """
        if self.budget_in == "flops" or not self.budget:
            return self.budget
        model = shape.architecture
        parts = self.subspace.blocks(model)
        first = [group[0] * model.layers // parts for group in self.groups(model)]
        prices = self.prices(model, PerFlop(shape, lengths, first))
        return STARTING + sum(map(mul, self.candidates(model), prices))

    def _check_fractions(self) -> None:
        """Where candidates cost fractions of a call, not everything can be had."""
        whole_calls = self.budget_in == "calls" and self.batch_size is None
        if not whole_calls and self.selection == "released":
            raise UserError(
                "selection=released looks at the candidate of every so many calls, and with "
                "budget_in=flops or a batch_size candidates cost fractions of one; choose another "
                "selection."
            )
        if self.batch_size is None:
            return
        whole(self.batch_size, "batch_size", least=1)
        if self.budget_in == "flops":
            raise UserError("Set budget_in=calls or batch_size=null: it is one or the other.")
        if self.incumbent != "center":
            raise UserError(
                f"incumbent={self.incumbent} compares losses of different turns, and with "
                f"batch_size={self.batch_size} each turn's are of other rows; choose "
                f"incumbent=center, or batch_size=null."
            )
        if not self.readout.plain:
            raise UserError(
                f"readout={self.readout.form} is solved on rows of every class, which a minibatch "
                f"may lack; choose readout=plain, or batch_size=null."
            )

    def _check_blocks(self, architecture: Architecture) -> None:
        vectors, space = self.subspace.blocks(architecture), type(self.subspace).__name__
        if self.layers is not None:
            if vectors != architecture.layers:
                raise UserError(
                    f"layers={self.layers} chooses among the layers' vectors, and {space} has "
                    f"{vectors} for the {architecture.layers} layers together; set layers=null, or "
                    f"take a subspace of one a layer."
                )
            subset(self.layers, "layers", range(vectors), shown=f"0 to {vectors - 1}")
            vectors = len(self.layers)
        if self.layers_per_block != "all":
            whole(self.layers_per_block, "layers_per_block", least=1)
            if self.layers_per_block > vectors:
                raise UserError(
                    f"layers_per_block={self.layers_per_block} is more than the {vectors} vectors "
                    f"of {space} that are searched; choose all, or at most {vectors}."
                )
        self.schedule.check(self.blocks(architecture))
        if self.schedule.informed and self.incumbent not in MEASURED:
            raise UserError(
                f"The schedule {type(self.schedule).__name__} is told the loss after each turn, "
                f"which incumbent={self.incumbent} does not measure; choose incumbent="
                f"{' or '.join(MEASURED)}, or another schedule."
            )

    def _check_budget(self, blocks: int, population: int) -> None:
        if self.budget_in == "flops" or self.batch_size is not None:
            return  # what a round costs shows only with the rows: ``check_prices``
        turns = self.schedule.least(blocks)
        self._check_round(turns * population, turns, population)

    def check_prices(self, architecture: Architecture, prices: Sequence[float]) -> None:
        """Raise UserError if the budget does not pay for the least turns; it may be 0."""
        turns = self.schedule.least(self.blocks(architecture))
        weights = self.schedule.weights(self.blocks(architecture))
        searched = (each for each, weight in zip(prices, weights, strict=True) if weight)
        dearest = sorted(searched, reverse=True)[:turns]
        population = self.block_optimizer(0, architecture, 0).population
        self._check_round(ceil(sum(dearest) * population), turns, population)

    def _check_round(self, calls: int, turns: int, population: int) -> None:
        what = "one generation" if turns == 1 else "one round of all layers"
        of_incumbents = {"improving": 1, "mean": 2}.get(self.incumbent, 0)
        needed = self.spent() + calls + of_incumbents
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
        self._spent = method.spent(data.more_ids)
        if self._spent:
            self._label_ids = self._more_words(data.train, memo)
        elif method.words > 1 and method.budget:
            more = [each[: method.words - 1] for each in data.more_ids]
            others = torch.tensor(more, device=data.label_ids.device)
            self._label_ids = torch.cat([data.label_ids[:, None], others], dim=1)
        # What the engine reads: a column a class, or one of each word.
        self._columns = self._label_ids.flatten() if method.readout.apart else self._label_ids
        self._seed = seed
        self._subspace = method.build(backbone, data, seed)
        self._dim = method.size(backbone.architecture)
        engine = self._engine(data.train)
        self._price = self._priced(engine)
        self._prices: Sequence[float] | None = None
        if method.budget_in == "flops" or method.batch_size is not None:
            self._prices = method.prices(backbone.architecture, self._price)
            method.check_prices(backbone.architecture, self._prices)
        self._optimizers = method.optimizers(backbone.architecture, seed, self._prices)
        self._train: Evaluator
        if method.batch_size is None:
            self._train = Remembered(self._evaluator(data.train, engine=engine), memo, "train")
        else:
            self._train = self._on_minibatches(method.batch_size, memo)
        if method.penalty:
            numbers = sum(method.dims(backbone.architecture))
            self._train = Penalised(self._train, method.penalty / numbers)
        back = None
        if SELECTIONS[method.selection].crossed:
            classes = len(data.label_ids)
            method.readout.check_classes(data.dev.labels.tolist(), classes, rows="dev")
            crossed = self._evaluator(data.train, solved_on=data.dev)
            back = Remembered(crossed, memo, "back")
        self._selection = DevSelection(
            Remembered(self._evaluator(data.dev, solved_on=data.train), memo, "dev"),
            back=back,
            rule=method.selection,
            interval=method.dev_interval,
            patience=method.patience,
        )

    def __iter__(self) -> Iterator[Progress]:
        """Search until the budget or the patience is spent."""
        method, selection = self._method, self._selection
        candidates = int(sum(method.candidates(self._backbone.architecture, self._prices)))
        order = method.schedule.order(
            len(self._optimizers),
            turns=candidates // self._optimizers[0].population,
            rng=stream(self._seed, "schedule"),
        )
        generations = tune(
            self._train,
            self._optimizers,
            dim=self._dim,
            budget=method.budget,
            incumbent=method.incumbent,
            order=order,
            price=self._price,
            spent=self._spent,
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
        dims = self._method.dims(self._backbone.architecture)
        return adapted(
            self._backbone,
            self._label_ids,
            self._subspace,
            chosen.solution,
            readout=self._readout(chosen.solution),
            dev=chosen,
            searched=sum(dim for dim, weight in zip(dims, weights, strict=True) if weight),
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
        logits = classify(self._backbone, self._columns, train, adapter)
        return self._method.readout.solve(logits[None].cpu(), train.labels, words=self._words)[0]

    @property
    def _words(self) -> int:
        """Columns a class of what the engine reads."""
        return len(self._columns) // len(self._label_ids)

    def _engine(self, batch: Batch) -> Engine:
        return Engine(
            self._backbone,
            batch,
            self._columns,
            normalised=self._method.objective in NORMALISED,
            others=self._method.objective in AGAINST_OTHERS,
        )

    def _priced(self, engine: Engine) -> Price:
        """What candidates cost on the train set of this engine."""
        method = self._method
        if method.batch_size is not None:
            return PerRow(Fraction(method.batch_size, len(engine.lengths)))
        if method.budget_in == "calls":
            return PerRow()
        made = [
            self._subspace.interventions(block, np.zeros((1, dim)))
            for block, dim in enumerate(method.dims(self._backbone.architecture))
        ]
        # Left out is what candidates' low-rank terms add, some hundredths of a layer.
        shape = Shape(
            architecture=self._backbone.architecture, rank=0, classes=len(self._label_ids)
        )
        entering = not all(each[min(each)].factors for each in made)
        return PerFlop(shape, engine.lengths, [*map(min, made)], entering=entering)

    def _on_minibatches(self, size: int, memo: Memo) -> Evaluator:
        """The train set's evaluator, on other rows each time."""
        train = self._data.train
        batches = minibatches(len(train.labels), size, stream(self._seed, "minibatches"))
        asks = self._optimizers[0].asks
        drawn = (rows for rows in batches for _ in range(asks))

        def evaluate(
            solution: NDArray[np.float64], block: int, candidates: NDArray[np.float64]
        ) -> Evaluation:
            rows = part(train, torch.from_numpy(next(drawn)))
            return Remembered(self._evaluator(rows), memo, "train")(solution, block, candidates)

        return evaluate

    def _evaluator(
        self, batch: Batch, *, engine: Engine | None = None, solved_on: Batch | None = None
    ) -> PopulationEvaluator:
        """Of a batch, with the readout of another one; None: with its own."""
        method, other = self._method, None
        if not method.readout.plain and solved_on is not None:
            known = Engine(self._backbone, solved_on, self._columns, carry=False)
            other = known, solved_on.labels
        return PopulationEvaluator(
            engine or self._engine(batch),
            self._subspace,
            batch.labels,
            objective=method.objective,
            metric=self._data.metric,
            readout=method.readout,
            words=self._words,
            solved_on=other,
        )
