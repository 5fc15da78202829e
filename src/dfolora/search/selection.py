"""Dev-set selection and early stopping."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfolora.search.evaluator import Evaluation, Evaluator
from dfolora.search.generation import Generation

Array = NDArray[np.float64]
AVERAGED = 4
"""Solutions that are averaged by a rule that averages."""


@dataclass(frozen=True, kw_only=True)
class DevPoint:
    """A solution with its score and loss on the dev set."""

    calls: int
    score: float
    loss: float
    back: float = nan
    """The loss on the train set, by a readout of the dev set; nan where the rule does not ask."""
    solution: Any
    """Search vectors ``(L, d)``, or whatever else a method fits."""


def by_score(point: DevPoint) -> tuple[float, ...]:
    """Rank of a dev evaluation, lower is better: by score, ties by loss."""
    return -point.score, point.loss


class DevSelection:
    """Evaluates solutions on the dev set during a search and keeps the best.

    Args:
        evaluate: Scores and losses on the dev set; its passes are not charged to the budget.
        back: The same with the train and the dev set exchanged, for a rule that is ``crossed``.
        rule: A name in ``SELECTIONS``: which solutions are looked at, and which is the best.
        interval: Calls between two looks.
        patience: The search counts as stalled once so many calls brought no higher dev score, or by
            the rules ``loss`` and ``crossed`` no lower loss; None never (Jin, Liu, Tan 2024, Table
            3: 1,500).
    """

    def __init__(
        self,
        evaluate: Evaluator,
        *,
        rule: str,
        interval: int,
        patience: int | None,
        back: Evaluator | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._back = back
        self._rule = SELECTIONS[rule]
        self._interval = interval
        self._patience = patience
        self._calls = -1
        self._last: DevPoint | None = None
        self._seen: list[DevPoint] = []
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
        """Score a solution on the dev set; keep it, or an average with it, if it is the best."""
        if self._rule.among is not None:
            if not any(np.array_equal(solution, seen.solution) for seen in self._seen):
                self._seen = [*self._rule.among([*self._seen, self._scored(calls, solution)])]
            solution = np.mean([seen.solution for seen in self._seen], axis=0)
        point = self._scored(calls, solution)
        rank = self._rule.rank(point)
        best = None if self.best is None else self._rule.rank(self.best)
        if best is None or rank[0] < best[0]:
            self._progress_calls = calls
        if best is None or rank < best:
            self.best = point
        return point

    def _scored(self, calls: int, solution: Array) -> DevPoint:
        if self._last is not None and np.array_equal(solution, self._last.solution):
            return replace(self._last, calls=calls)
        dev = self._evaluate(solution, 0, solution[:1])
        self._last = DevPoint(
            calls=calls,
            score=float(dev.scores[0]),
            loss=_finite(dev),
            back=nan if self._back is None else _finite(self._back(solution, 0, solution[:1])),
            solution=solution.copy(),
        )
        return self._last


def _finite(evaluation: Evaluation) -> float:
    loss = float(evaluation.losses[0])
    return loss if isfinite(loss) else np.inf


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
            solution[generation.block, : len(candidate)] = candidate
            yield first + index, solution


@dataclass(frozen=True, kw_only=True)
class SelectionRule:
    """Which solutions are evaluated on dev, and how they are ranked."""

    looks: Callable[[Generation, int, int], Iterator[tuple[int, Array]]]
    """``(generation, calls before it, interval)`` -> calls and solutions to evaluate."""
    rank: Callable[[DevPoint], tuple[float, ...]]
    """Lower is better."""
    among: Callable[[Sequence[DevPoint]], Sequence[DevPoint]] | None = None
    """Which of the looks, in order, are averaged in z and looked at in place of the last of them;
    None for no averages."""
    crossed: bool = False
    """Whether the rank asks for a point's ``back``."""

    @property
    def simple(self) -> bool:
        """Whether it takes any solution as it is, by its dev score and loss."""
        return self.among is None and not self.crossed


SELECTIONS: Mapping[str, SelectionRule] = {
    "incumbent": SelectionRule(
        looks=_current_incumbents,
        rank=by_score,
    ),
    "loss": SelectionRule(
        looks=_current_incumbents,
        rank=lambda point: (point.loss,),
    ),
    # Cross-validation in two folds: each set is judged by the readout of the other.
    "crossed": SelectionRule(
        looks=_current_incumbents,
        rank=lambda point: (point.loss + point.back,),
        crossed=True,
    ),
    "mean_last": SelectionRule(
        looks=_current_incumbents,
        rank=by_score,
        among=lambda points: points[-AVERAGED:],
    ),
    "mean_best": SelectionRule(
        looks=_current_incumbents,
        rank=by_score,
        among=lambda points: sorted(points, key=by_score)[:AVERAGED],
    ),
    # As in the code of Jin, Liu, Tan 2024.
    "released": SelectionRule(
        looks=_every_nth_candidate,
        rank=lambda point: (-point.score,),
    ),
}
