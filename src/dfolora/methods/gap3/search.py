"""The genetic algorithm: survival, reproduction, termination."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import isqrt, nan
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Batch, Encode, Encoder, Prompt, Rows
from dfolora.engine import SolvedReadout, check_readout
from dfolora.errors import UserError
from dfolora.methods.gap3.genome import Genome, Hole, Template, crossed, mutated, size
from dfolora.methods.gap3.guide import PASSES, Fitness, Guide, Individual, Passes
from dfolora.methods.method import FewShotData, Predictor, Progress
from dfolora.methods.readouts import class_logits, save_readout
from dfolora.model import Architecture, Backbone
from dfolora.search import SELECTIONS, Answer, DevPoint, Memo, forgetful
from dfolora.seeding import stream
from dfolora.validation import choice, share, whole

COMPARISONS: Mapping[str, Callable[[Fitness, Fitness], bool]] = {
    "fixed": lambda new, best: new > best,
    # As in the released code, where a signed difference counts as true unless it is 0.
    "released": lambda new, best: new != best,
}


@dataclass(frozen=True, kw_only=True)
class Gap3:
    """A genetic algorithm over the words between a prompt's fields."""

    population: int = 64
    """Individuals; the square root of their number survives a generation."""
    generations: int | None = 50
    """The most generations after the first population; None for as many as the budget allows."""
    budget: int = 6000
    """The most passes over the train set: three per individual with a new token, else one."""
    mutation: float = 0.75
    """Probability that a child gets a new token."""
    crossover: float = 0.5
    """Probability that a child has a slot of its second parent."""
    top: int = 4096
    """The number of best tokens that are tried in a hole."""
    room: int = 100
    """The most tokens of words in a prompt."""
    comparison: str = "fixed"
    """A name in ``COMPARISONS``: when an individual replaces the best."""
    selection: str = "incumbent"
    """``incumbent``: the dev set chooses among the bests of different generations, ``loss``: by its
    cross-entropy; ``released``: it is the last best, and the dev set is not looked at."""
    dev_interval: int = 100
    """Calls between two looks at the dev set, which come as a generation ends."""
    readout: SolvedReadout = field(default_factory=SolvedReadout)
    """Solved on the train set for every prompt, as in ``LayerwiseSearch``."""

    seeded: ClassVar[bool] = True
    resumable: ClassVar[bool] = True

    def check(self, architecture: Architecture) -> None:
        check_readout(self.readout)
        whole(self.population, "method.population", least=2)
        if self.generations is not None:
            whole(self.generations, "method.generations", least=0)
        whole(self.budget, "budget", least=1)
        whole(self.top, "method.top", least=1)
        whole(self.room, "method.room", least=1)
        whole(self.dev_interval, "dev_interval", least=1)
        share(self.mutation, "method.mutation")
        share(self.crossover, "method.crossover")
        choice(self.comparison, "method.comparison", COMPARISONS)
        simple = [name for name, rule in SELECTIONS.items() if rule.simple]
        if self.selection in {*SELECTIONS} - {*simple}:
            raise UserError(
                f"selection={self.selection} is for searches of vectors; for prompts choose "
                f"{' or '.join(simple)}."
            )
        choice(self.selection, "selection", simple)
        if self.budget < PASSES * self.population:
            raise UserError(
                f"budget={self.budget} is smaller than the first population, which needs "
                f"{PASSES * self.population} calls, {PASSES} for each of "
                f"method.population={self.population}; raise budget or take a smaller population."
            )

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        self.readout.check_classes(train.labels, len(plain.prompt.label_words))
        return Template(plain=plain, room=self.room)

    def begin(
        self, backbone: Backbone, data: FewShotData, seed: int, memo: Memo = forgetful
    ) -> "GeneticSearch":
        """Prepare the search; the model is not asked yet."""
        self.check(backbone.architecture)
        if not isinstance(data.encode, Template):
            raise TypeError("The genetic prompt search needs data.encode to be its own encoder.")
        return GeneticSearch(self, backbone, data, data.encode, seed, memo)


@dataclass(frozen=True, kw_only=True)
class GeneticStep:
    """One generation."""

    calls: int
    patterns: Sequence[str]
    """Patterns of its new individuals, ``(P,)``."""
    losses: NDArray[np.float64]
    """Their mean cross-entropy over the label words, ``(P,)``."""
    loss: float
    """The loss of the best so far."""
    step_size: float = nan


class GeneticSearch:
    """One genetic search."""

    def __init__(
        self,
        method: Gap3,
        backbone: Backbone,
        data: FewShotData,
        template: Template,
        seed: int,
        memo: Memo,
    ) -> None:
        self._method = method
        self._backbone = backbone
        self._label_ids = data.label_ids
        self._template = template
        self._rng = stream(seed, "genetic")

        def passes(rows: Rows, solved_on: Passes | None = None) -> Passes:
            return Passes(
                backbone, template, rows, data.label_ids, data.metric, method.readout, solved_on
            )

        self._train = passes(data.train.rows)
        self._dev = passes(data.dev.rows, self._train)
        tokens = len(backbone.embedding)
        self._guide = Guide(self._train, template, top=method.top, tokens=tokens, memo=memo)
        self._memo = memo
        self._population: list[Individual] = []
        self._best: Individual | None = None
        self._last: DevPoint | None = None
        self._selected: DevPoint | None = None

    def __iter__(self) -> Iterator[Progress]:
        """Search until the generations or the budget are spent, or no new prompt is found."""
        for generation in count():
            before, survivors = self._guide.calls, self._survivors()
            new = list(self._bred(self._method.population - len(survivors)))
            if not new:
                return
            self._population = [*survivors, *new]
            last = generation == self._method.generations or not self._affordable
            looks = self._looks(before, last)
            yield Progress(step=self._step(new), looks=looks, selected=self._selected)
            if last:
                return

    def predictor(self) -> Predictor:
        """The prompt that the dev set chose, or the last best."""
        genome, dev = self._best_genome, None
        if self._method.selection != "released":
            last = self._look()  # makes no pass where nothing came after the last look
            dev = self._selected or last
            genome = dev.solution

        readout = None if self._method.readout.plain else self._train.solved(genome)

        def logits(batch: Batch) -> Tensor:
            written = self._template.encode(batch.rows, genome)
            return class_logits(self._backbone, self._label_ids, written, {}, readout)

        def write(folder: Path) -> None:
            _save(self._template.prompt(genome), folder)
            if readout is not None:
                save_readout(folder, readout)

        return Predictor(
            logits=logits,
            write=write,
            dev=dev,
            searched=size(genome),
            stored=size(genome),
            found={"gene_tokens": size(genome)},
        )

    @property
    def _best_genome(self) -> Genome:
        return self._template.empty if self._best is None else self._best.genome

    @property
    def _affordable(self) -> bool:
        """Whether the budget allows one more individual of the highest cost."""
        return self._guide.calls + PASSES <= self._method.budget

    def _survivors(self) -> list[Individual]:
        """The fittest individuals, and the best so far."""
        fittest = sorted(self._population, key=lambda one: one.fitness, reverse=True)
        survivors = fittest[: isqrt(self._method.population)]
        if self._best is not None and self._best not in survivors:
            survivors.append(self._best)
        return survivors

    def _bred(self, number: int) -> Iterator[Individual]:
        """Breed and evaluate new individuals, at most ``number``."""
        better = COMPARISONS[self._method.comparison]
        for _ in range(number):
            if not self._affordable:
                return
            individual = self._guide.realised(self._child())
            if individual is None:
                continue
            if self._best is None or better(individual.fitness, self._best.fitness):
                self._best = individual
            yield individual

    def _child(self) -> Genome | Hole:
        """A child of two parents drawn by score; at first a hole between fields."""
        method, slots, rng = self._method, self._template.slots, self._rng
        if not self._population:
            return mutated(self._template.empty, slots, method.room, rng)
        weights = np.exp([one.score for one in self._population])
        first, second = rng.choice(len(weights), size=2, p=weights / weights.sum())
        own, theirs = self._population[first].genome, self._population[second].genome
        child = crossed(own, theirs, method.crossover, rng)
        if size(child) > method.room:
            child = own
        # A child that was there before would be paid for and bring nothing.
        if rng.random() < method.mutation or child in self._guide.seen:
            return mutated(child, slots, method.room, rng)
        return child

    def _step(self, new: Sequence[Individual]) -> GeneticStep:
        return GeneticStep(
            calls=self._guide.calls,
            patterns=[self._template.prompt(one.genome).pattern for one in new],
            losses=np.array([one.loss for one in new]),
            loss=nan if self._best is None else self._best.loss,
        )

    def _looks(self, calls_before: int, last: bool) -> list[DevPoint]:
        interval = self._method.dev_interval
        due = calls_before // interval < self._guide.calls // interval or last
        return [self._look()] if due and self._method.selection != "released" else []

    def _look(self) -> DevPoint:
        """Evaluate the best on the dev set, and keep it if it beats the former ones there."""
        genome, last = self._best_genome, self._last
        if last is None or last.solution != genome:
            answer = self._memo({"dev": genome}, lambda: self._scored(genome))
            score, loss = answer["score"], answer["loss"]
        else:
            score, loss = last.score, last.loss
        point = DevPoint(calls=self._guide.calls, score=score, loss=loss, solution=genome)
        rank = SELECTIONS[self._method.selection].rank
        if self._selected is None or rank(point) < rank(self._selected):
            self._selected = point
        self._last = point
        return point

    def _scored(self, genome: Genome) -> Answer:
        individual = self._dev.evaluate(genome)
        return {"score": individual.score, "loss": individual.loss}


def _save(prompt: Prompt, folder: Path) -> None:
    """Write ``prompt.json``: kind, pattern and label words, as a task's file has them."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        "kind": prompt.kind,
        "pattern": prompt.pattern,
        "label_words": list(prompt.label_words),
    }
    text = json.dumps(written, indent=2, ensure_ascii=False)
    (folder / "prompt.json").write_text(text + "\n", encoding="utf-8")
