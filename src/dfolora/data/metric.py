"""Metrics: named functions of labels and predictions, vectorised over populations."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Metric = Callable[[ArrayLike, ArrayLike], NDArray[np.float64]]
"""``(labels (N,), predictions (..., N)) -> scores (...,)``, each in [0, 1], higher is better."""


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> NDArray[np.float64]:
    """Share of correct predictions.

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
"""Metrics by the names that tasks use."""


def constant_score(labels: ArrayLike, label: int, metric: Metric) -> float:
    """The score of a predictor that always answers ``label``.

    Args:
        labels: True classes, ``(N,)``.
        label: The constant prediction.
        metric: One of `METRICS`.
    """
    return float(metric(labels, np.full_like(labels, label)))


def majority_score(labels: ArrayLike, metric: Metric) -> float:
    """The score of always predicting the most frequent class (ties: the lowest).

    Args:
        labels: True classes, ``(N,)``.
        metric: One of `METRICS`.
    """
    return constant_score(labels, int(np.bincount(np.asarray(labels)).argmax()), metric)


def _aligned(
    labels: ArrayLike, predictions: ArrayLike
) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Both as arrays of matching shapes, so that a mismatch cannot broadcast to a score."""
    truth, guess = np.asarray(labels), np.asarray(predictions)
    if truth.ndim != 1 or guess.shape[-1:] != truth.shape:
        raise ValueError(
            f"Expected labels (N,) and predictions (..., N), got {truth.shape} and {guess.shape}."
        )
    return truth, guess
