"""The objectives that a search minimises, as functions of the label-word logits.

Letters: P candidates, N examples, C classes. All arithmetic is float64, so that the loss of an
example does not depend on how the population was chunked, and on the CPU, for it is little.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfolora.errors import UserError

Array = NDArray[np.float64]
HINGE_MARGIN = 2.0


def cross_entropy(logits: Tensor, labels: Tensor) -> Array:
    """Mean cross-entropy over the label words: ``(P, N, C), (N,) -> (P,)``."""
    log_probabilities = torch.log_softmax(logits.double(), dim=-1)
    gold = log_probabilities.gather(-1, _gold(logits, labels))
    return _numpy(-gold.squeeze(-1).mean(-1))


def vocabulary_cross_entropy(logits: Tensor, labels: Tensor) -> Array:
    """Mean of -log p of the gold label word among all tokens: ``(P, N, C), (N,) -> (P,)``.

    It is the cross-entropy over the label words, minus the log of the probability that these have
    together. So it also moves probability to them from the rest of the vocabulary.

    Args:
        logits: Log-probabilities, as of an engine that is ``normalised``.
        labels: The gold classes.
    """
    return _numpy(-logits.double().gather(-1, _gold(logits, labels)).squeeze(-1).mean(-1))


def exact_match(logits: Tensor, labels: Tensor) -> Array:
    """1 - share of examples whose likeliest token is the gold label word: ``(P, N, C + 1), (N,)``.

    Ties are broken by -log p of the gold label word: ``(P,)``.

    Args:
        logits: Log-probabilities of the label words and, last, of the likeliest other token, as of
            an engine that gives ``others``.
        labels: The gold classes.
    """
    said = _numpy((logits.argmax(-1) == labels).double().mean(-1))
    return metric_objective(said, vocabulary_cross_entropy(logits, labels), len(labels))


def hinge(logits: Tensor, labels: Tensor) -> Array:
    """Sum over wrong classes of ``max(0, margin + wrong - gold)``, mean over examples: ``(P,)``."""
    logits = logits.double()
    gold = _gold(logits, labels)
    violations = (HINGE_MARGIN + logits - logits.gather(-1, gold)).clamp_min(0.0)
    return _numpy(violations.scatter(-1, gold, 0.0).sum(-1).mean(-1))


def metric_objective(scores: Array, losses: Array, examples: int) -> Array:
    """``1 - score`` with ties broken by the loss, as one number: ``(P,), (P,) -> (P,)``.

    Two different accuracies or F1 values over N examples lie at least ``1 / (4 N^2)`` apart, so
    the loss, squeezed into that gap, never outweighs the score.
    """
    squeezed = losses / (1.0 + losses)
    return 1.0 - scores + squeezed / (4 * examples**2)


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Array]] = {
    "ce": cross_entropy,
    "hinge": hinge,
    "ce_vocab": vocabulary_cross_entropy,
    "exact": exact_match,
}
NORMALISED = ("ce_vocab", "exact")
"""Objectives of log-probabilities among all tokens."""
AGAINST_OTHERS = ("exact",)
"""Those of them that need the likeliest other token's too, as one more column."""
OBJECTIVES = (*LOSSES, "metric")


def check_objective(name: str) -> None:
    """Raise UserError unless ``name`` is a known objective."""
    if name not in OBJECTIVES:
        raise UserError(f"Unknown objective {name!r}; choose one of {', '.join(OBJECTIVES)}.")


def _gold(logits: Tensor, labels: Tensor) -> Tensor:
    return labels.expand(logits.shape[:-1]).unsqueeze(-1)


def _numpy(values: Tensor) -> Array:
    return values.cpu().numpy()
