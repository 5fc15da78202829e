"""Evaluates populations: search vectors to losses and scores.

Letters: P candidates, L blocks, d search dimension, N examples.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import METRICS
from dfolora.engine import (
    AGAINST_OTHERS,
    LOSSES,
    Interventions,
    SolvedReadout,
    check_objective,
    cross_entropy,
    metric_objective,
)
from dfolora.search.subspace import Subspace

Array = NDArray[np.float64]

Answer = Mapping[str, Any]
"""JSON values; numbers are finite, and None stands for NaN or infinity."""

Memo = Callable[[Answer, Callable[[], Answer]], Answer]
"""``(question, compute) -> answer``: the journaled answer, or a new one that is then journaled.

A fit asks the same questions in the same order whenever it is repeated, for they depend on its seed
and on the answers. So answers that cost passes through the model are computed once.
"""


def forgetful(_question: Answer, compute: Callable[[], Answer]) -> Answer:
    """A memo that keeps nothing."""
    return compute()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Losses and scores of a population on one batch."""

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


Logits = Callable[[Interventions, Interventions], Tensor]
"""An engine: incumbents and candidates to the class logits of one batch, ``(P, N, C)``."""


class PopulationEvaluator:
    """Scores an engine's logits by an objective and a metric.

    Args:
        engine: Gives the logits of one batch, log-probabilities for an objective in ``NORMALISED``,
            with the likeliest other token's for one in ``AGAINST_OTHERS``.
        subspace: Search vectors to interventions.
        labels: ``(N,)``.
        objective: ``ce``, ``hinge``, ``ce_vocab``, ``exact``, or ``metric`` (1 - score, ties by
            cross-entropy).
        metric: Name of the task's metric.
        readout: Solved for each candidate; its logits are scored as the readout maps them.
        words: Columns of the engine's logits for each class, which only a readout makes one.
        solved_on: An engine and the labels of the train set, if the batch is another one; None: the
            readout is solved on the batch itself.
    """

    def __init__(
        self,
        engine: Logits,
        subspace: Subspace,
        labels: Tensor,
        *,
        objective: str,
        metric: str,
        readout: SolvedReadout | None = None,
        words: int = 1,
        solved_on: tuple[Logits, Tensor] | None = None,
    ) -> None:
        check_objective(objective)
        self._engine = engine
        self._subspace = subspace
        self._labels = labels
        self._objective = objective
        self._metric = METRICS[metric]
        self._readout = readout or SolvedReadout()
        self._words = words
        self._solved_on = solved_on

    def __call__(self, solution: Array, block: int, candidates: Array) -> Evaluation:
        incumbents = self._subspace.incumbents(solution, without=[block])
        made = self._subspace.interventions(block, candidates)
        logits = self._engine(incumbents, made).cpu()  # once; they are few
        if not self._readout.plain:
            known, labels = logits, self._labels
            if self._solved_on is not None:
                engine, labels = self._solved_on
                known = engine(incumbents, made).cpu()
            logits = self._readout.solve(known, labels, words=self._words)(logits)
        of_classes = logits[..., :-1] if self._objective in AGAINST_OTHERS else logits
        scores = self._metric(self._labels.numpy(), of_classes.argmax(-1).numpy())
        losses = LOSSES.get(self._objective, cross_entropy)(logits, self._labels)
        if self._objective == "metric":
            losses = metric_objective(scores, losses, len(self._labels))
        return Evaluation(losses=losses, scores=scores)


class Penalised:
    """An evaluator whose losses grow with the absolute numbers of the whole solution.

    Args:
        evaluate: Judges candidates.
        weight: Of their sum.
    """

    def __init__(self, evaluate: Evaluator, weight: float) -> None:
        self._evaluate = evaluate
        self._weight = weight

    def __call__(self, solution: Array, block: int, candidates: Array) -> Evaluation:
        made = self._evaluate(solution, block, candidates)
        others = np.abs(np.delete(solution, block, axis=0)).sum()
        whole = others + np.abs(candidates).sum(axis=1)
        return replace(made, losses=made.losses + self._weight * whole)


class Remembered:
    """An evaluator whose answers go through a memo.

    Args:
        evaluate: Asked what the memo does not hold.
        memo: Of the fit.
        name: Of the rows, ``train`` or ``dev``; or ``back``, of train judged by dev's readout.
    """

    def __init__(self, evaluate: Evaluator, memo: Memo, name: str) -> None:
        self._evaluate = evaluate
        self._memo = memo
        self._name = name

    def __call__(self, solution: Array, block: int, candidates: Array) -> Evaluation:
        """Raise UserError if the memo's answer is for other candidates."""

        def compute() -> Answer:
            made = self._evaluate(solution, block, candidates)
            losses = [loss if isfinite(loss) else None for loss in made.losses.tolist()]
            return {"losses": losses, "scores": made.scores.tolist()}

        digest = hashlib.sha256(solution.tobytes() + candidates.tobytes()).hexdigest()
        answer = self._memo({self._name: block, "candidates_sha256": digest}, compute)
        return Evaluation(
            losses=np.array(answer["losses"], dtype=np.float64),  # None becomes nan
            scores=np.array(answer["scores"]),
        )
