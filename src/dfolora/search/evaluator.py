"""Losses and scores of whole populations.

Letters: P candidates, L blocks, d search dimension, N examples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import METRICS
from dfolora.engine import (
    LOSSES,
    Interventions,
    check_objective,
    cross_entropy,
    metric_objective,
)
from dfolora.errors import UserError
from dfolora.model import Intervention
from dfolora.search.subspace import Subspace

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a population scored on one batch."""

    losses: Array
    """The objective, lower is better: ``(P,)``."""
    scores: Array
    """The task's metric in [0, 1]: ``(P,)``."""


class Evaluator(Protocol):
    """A pure function of a solution and the candidates for one of its blocks."""

    def __call__(self, solution: Array, block: int, candidates: Array) -> Evaluation:
        """Evaluate ``solution`` with row ``block`` replaced by each candidate in turn.

        Args:
            solution: One search vector a block, ``(L, d)``.
            block: Which row the candidates replace.
            candidates: ``(P, d)``.
        """
        ...


class PopulationEvaluator:
    """An ``Evaluator``: an engine's logits under an objective and a metric.

    Args:
        engine: Gives the logits of one batch.
        subspace: Search vectors to interventions.
        labels: ``(N,)``.
        objective: ``ce``, ``hinge``, or ``metric`` (1 - score, ties by cross-entropy).
        metric: Name of the task's metric.
    """

    def __init__(
        self,
        engine: Callable[[Interventions, Intervention], Tensor],
        subspace: Subspace,
        labels: Tensor,
        *,
        objective: str,
        metric: str,
    ) -> None:
        check_objective(objective)
        self._engine = engine
        self._subspace = subspace
        self._labels = labels
        self._objective = objective
        self._metric = METRICS[metric]

    def __call__(self, solution: Array, block: int, candidates: Array) -> Evaluation:
        """See ``Evaluator``."""
        incumbents = self._subspace.incumbents(solution, without=block)
        logits = self._engine(incumbents, self._subspace.intervention(block, candidates))
        labels = self._labels.to(logits.device)
        predictions = logits.argmax(-1).cpu().numpy()
        scores = self._metric(self._labels.numpy(), predictions)
        losses = LOSSES.get(self._objective, cross_entropy)(logits, labels)
        if self._objective == "metric":
            losses = metric_objective(scores, losses, len(labels))
        return Evaluation(losses=losses, scores=scores)


class Remembering:
    """An ``Evaluator`` that was asked before: it repeats those losses, then evaluates.

    Scores are not remembered; the loop, which is all that asks a train set, does not use them.

    Args:
        evaluate: What comes after.
        losses: Of all candidates in the order in which they were asked, ``(n,)``.
    """

    def __init__(self, evaluate: Evaluator, losses: Array) -> None:
        self._evaluate = evaluate
        self._losses = losses

    def __call__(self, solution: Array, block: int, candidates: Array) -> Evaluation:
        """See ``Evaluator``.

        Raises:
            UserError: Not all of these candidates were asked together before.
        """
        if not len(self._losses):
            return self._evaluate(solution, block, candidates)
        told, self._losses = np.split(self._losses, [len(candidates)])
        if len(told) < len(candidates):
            raise UserError(
                f"{len(candidates)} candidates were asked where {len(told)} losses were kept: "
                f"these are of another search."
            )
        return Evaluation(losses=told, scores=np.full(len(told), np.nan))
