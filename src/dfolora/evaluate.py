"""Losses and scores of whole populations, exactly as one padded forward each would give them.

Letters: P candidates, L blocks, d search dimension, N examples, T tokens, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfolora.backbone import Backbone
from dfolora.data.encode import Batch
from dfolora.metric import METRICS
from dfolora.objective import LOSSES, check_objective, cross_entropy, metric_objective
from dfolora.subspace import LoraSubspace

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


class PopulationForward:
    """Label-word logits of whole populations on one batch.

    Args:
        backbone: The frozen model.
        subspace: Search vectors to LoRA factors.
        batch: The encoded examples.
        label_ids: ``(C,)``, the label words' token ids.
        tokens: At most so many tokens, padding included, go through the model at once; only a
            single longer example exceeds it.
    """

    def __init__(
        self,
        backbone: Backbone,
        subspace: LoraSubspace,
        batch: Batch,
        label_ids: Tensor,
        *,
        tokens: int,
    ) -> None:
        self._backbone = backbone
        self._subspace = subspace
        self._batch = batch
        self._label_ids = label_ids
        self._tokens = tokens

    def __call__(self, solution: Array, block: int, candidates: Array) -> Tensor:
        """``(L, d), block, (P, d) -> (P, N, C)``, float32; row ``block`` is each candidate."""
        others = [
            self._subspace.intervention(other, solution[other : other + 1])
            for other in range(self._subspace.blocks)
            if other != block and solution[other].any()
        ]
        at_once = max(1, self._tokens // self._batch.input_ids.numel())
        logits = []
        for start in range(0, len(candidates), at_once):
            chunk = candidates[start : start + at_once]
            searched = self._subspace.intervention(block, chunk)
            with self._backbone.with_lora([*others, searched]):
                logits.append(
                    batch_logits(
                        self._backbone,
                        self._batch,
                        self._label_ids,
                        tokens=self._tokens,
                        population=len(chunk),
                    )
                )
        return torch.cat(logits)


class PopulationEvaluator:
    """An ``Evaluator``: a ``PopulationForward`` with an objective and a metric.

    Args:
        forward: Gives the logits.
        labels: ``(N,)``.
        objective: ``ce``, ``hinge``, or ``metric`` (1 - score, ties by cross-entropy).
        metric: Name of the task's metric.
    """

    def __init__(
        self, forward: PopulationForward, labels: Tensor, *, objective: str, metric: str
    ) -> None:
        check_objective(objective)
        self._forward = forward
        self._labels = labels
        self._objective = objective
        self._metric = METRICS[metric]

    def __call__(self, solution: Array, block: int, candidates: Array) -> Evaluation:
        """See ``Evaluator``."""
        logits = self._forward(solution, block, candidates)
        labels = self._labels.to(logits.device)
        predictions = logits.argmax(-1).cpu().numpy()
        scores = self._metric(self._labels.numpy(), predictions)
        losses = LOSSES.get(self._objective, cross_entropy)(logits, labels)
        if self._objective == "metric":
            losses = metric_objective(scores, losses, len(labels))
        return Evaluation(losses=losses, scores=scores)


def batch_logits(
    backbone: Backbone, batch: Batch, label_ids: Tensor, *, tokens: int, population: int = 1
) -> Tensor:
    """Label-word logits of a batch under whatever LoRA factors are active.

    Args:
        backbone: The frozen model.
        batch: N examples.
        label_ids: ``(C,)``.
        tokens: At most so many tokens at once, padding and population included.
        population: P, how many candidates the active factors hold.

    Returns:
        ``(P, N, C)``, float32, on the backbone's device.
    """
    device, size = backbone.device, len(batch.labels)
    logits = torch.empty(population, size, len(label_ids), device=device)
    for rows, length in _length_buckets(batch, max(1, tokens // population)):
        part = backbone.answer_logits(
            batch.input_ids[rows, :length].to(device).repeat(population, 1),
            batch.attention_mask[rows, :length].to(device).repeat(population, 1),
            batch.answer[rows].to(device).repeat(population),
            label_ids.to(device),
        )
        logits[:, rows.to(device)] = part.reshape(population, len(rows), -1)
    return logits


def _length_buckets(batch: Batch, tokens: int) -> Iterator[tuple[Tensor, int]]:
    """Rows of similar length, with the length that holds them all: ``((n,), T)``, n T <= tokens."""
    # The released GPT-2 readout answers in the padding, which must then stay.
    needed = torch.maximum(batch.attention_mask.sum(-1), batch.answer + 1)
    order = needed.argsort(stable=True)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * int(needed[order[stop]]) <= tokens:
            stop += 1
        yield order[start:stop], int(needed[order[stop - 1]])
        start = stop
