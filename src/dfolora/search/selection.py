"""Dev-set selection and early stopping."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfolora.search.evaluator import Evaluator
from dfolora.search.generation import Generation

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DevPoint:
    """A solution with its score and loss on the dev set."""

    calls: int
    score: float
    loss: float
    solution: Any
    """Search vectors ``(L, d)``, or whatever else a method fits."""


def by_score(point: DevPoint) -> tuple[float, ...]:
    """Rank of a dev evaluation, lower is better: by score, ties by loss."""
    return -point.score, point.loss


class DevSelection:
    """Evaluates solutions on the dev set during a search and keeps the best.

    Args:
        evaluate: Scores and losses on the dev set; its passes are not charged to the budget.
        rule: A name in ``SELECTIONS``: which solutions are looked at.
        interval: Calls between two looks.
        patience: The search counts as stalled once so many calls brought no higher dev score, or by
            the rule ``loss`` no lower loss; None never (Jin, Liu, Tan 2024, Table 3: 1,500).
    """

    def __init__(
        self, evaluate: Evaluator, *, rule: str, interval: int, patience: int | None
    ) -> None:
        self._evaluate = evaluate
        self._rule = SELECTIONS[rule]
        self._interval = interval
        self._patience = patience
        self._calls = -1
        self._last: DevPoint | None = None
        self._progress_calls = 0
        self.best: DevPoint | None = None
        """The best so far by the rule's rank; of equals the earlier one."""
        self.stalled = False
        """Whether the patience has run out."""

    def see(self, generation: Generation) -> Sequence[DevPoint]:
        """Evaluate on dev if the rule asks for it at this generation."""
        due = self._rule.looks(generation, self._calls, self._interval)
        points = [self.look(calls, solution) for calls, solution in due]
        self._calls = generation.calls
        self.stalled = (
            self._patience is not None and generation.calls - self._progress_calls >= self._patience
        )
        return points

    def look(self, calls: int, solution: Array) -> DevPoint:
        """Score a solution on the dev set; keep it if it is the best so far."""
        score, loss = self._scored(solution)
        point = DevPoint(calls=calls, score=score, loss=loss, solution=solution.copy())
        rank = self._rule.rank(point)
        best = None if self.best is None else self._rule.rank(self.best)
        if best is None or rank[0] < best[0]:
            self._progress_calls = calls
        if best is None or rank < best:
            self.best = point
        self._last = point
        return point

    def _scored(self, solution: Array) -> tuple[float, float]:
        if self._last is not None and np.array_equal(solution, self._last.solution):
            return self._last.score, self._last.loss
        dev = self._evaluate(solution, 0, solution[:1])
        loss = float(dev.losses[0])
        return float(dev.scores[0]), loss if np.isfinite(loss) else np.inf


def _current_incumbents(
    generation: Generation, previous_calls: int, interval: int
) -> Iterator[tuple[int, Array]]:
    """The incumbents at the start, after each interval, and at the end."""
    if previous_calls // interval < generation.calls // interval or generation.last:
        yield generation.calls, generation.solution


def _every_nth_candidate(
    generation: Generation, _previous_calls: int, interval: int
) -> Iterator[tuple[int, Array]]:
    """The candidate of call n, 2n, 3n, ..., with the other blocks' incumbents."""
    first = generation.calls - len(generation.losses) + 1
    for index, candidate in enumerate(generation.candidates):
        if (first + index) % interval == 0:
            solution = generation.solution.copy()
            solution[generation.block] = candidate
            yield first + index, solution


@dataclass(frozen=True, kw_only=True)
class SelectionRule:
    """Which solutions are evaluated on dev, and how they are ranked."""

    looks: Callable[[Generation, int, int], Iterator[tuple[int, Array]]]
    """``(generation, calls before it, interval)`` -> calls and solutions to evaluate."""
    rank: Callable[[DevPoint], tuple[float, ...]]
    """Lower is better."""


SELECTIONS: Mapping[str, SelectionRule] = {
    "incumbent": SelectionRule(
        looks=_current_incumbents,
        rank=by_score,
    ),
    "loss": SelectionRule(
        looks=_current_incumbents,
        rank=lambda point: (point.loss,),
    ),
    # As in the code of Jin, Liu, Tan 2024.
    "released": SelectionRule(
        looks=_every_nth_candidate,
        rank=lambda point: (-point.score,),
    ),
}
