"""How predictions are scored: named functions, vectorised over whole populations."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Metric = Callable[[ArrayLike, ArrayLike], NDArray[np.float64]]
"""``(labels (N,), predictions (..., N)) -> scores (...,)``, each in [0, 1], higher is better."""


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> NDArray[np.float64]:
    """Share of the rows predicted right.

    Args:
        labels: True classes, ``(N,)``.
        predictions: Predicted classes, ``(..., N)``.

    Returns:
        Scores ``(...,)``.
    """
    truth, guess = _aligned(labels, predictions)
    return np.asarray((guess == truth).mean(axis=-1))


def f1(labels: ArrayLike, predictions: ArrayLike) -> NDArray[np.float64]:
    """Binary F1 of class 1; 0 where neither labels nor predictions hold a 1.

    Args:
        labels: True classes, 0 or 1, ``(N,)``.
        predictions: Predicted classes, 0 or 1, ``(..., N)``.

    Returns:
        Scores ``(...,)``.
    """
    truth, guess = (values == 1 for values in _aligned(labels, predictions))
    hits = (guess & truth).sum(axis=-1)
    positives = guess.sum(axis=-1) + truth.sum()
    return np.asarray(2.0 * hits / np.maximum(positives, 1))


METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "f1": f1}
"""The metrics a task can name."""


def constant_score(labels: ArrayLike, label: int, metric: Metric) -> float:
    """The score of always predicting ``label``: what "Yes" to everything gets.

    Args:
        labels: True classes, ``(N,)``.
        label: The class that is always predicted.
        metric: One of `METRICS`.
    """
    return float(metric(labels, np.full_like(labels, label)))


def majority_score(labels: ArrayLike, metric: Metric) -> float:
    """The score of always predicting the most frequent class (of equals, the lowest).

    Args:
        labels: True classes, ``(N,)``, whose frequencies count.
        metric: One of `METRICS`.
    """
    return constant_score(labels, int(np.bincount(np.asarray(labels)).argmax()), metric)


def _aligned(
    labels: ArrayLike, predictions: ArrayLike
) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Both as arrays; an unequal number of rows must not broadcast to a plausible score."""
    truth, guess = np.asarray(labels), np.asarray(predictions)
    if truth.ndim != 1 or guess.shape[-1:] != truth.shape:
        raise ValueError(
            f"Expected labels (N,) and predictions (..., N), got {truth.shape} and {guess.shape}."
        )
    return truth, guess
