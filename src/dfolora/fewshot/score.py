"""Scores a test set, beside what constant predictors score."""

from collections.abc import Mapping

from torch import Tensor

from dfolora.data import METRICS, accuracy, constant_score, majority_score
from dfolora.fewshot.problem import Problem


def score_test(logits: Tensor, problem: Problem) -> Mapping[str, float]:
    """One predictor's scores on the test set by name, each in [0, 1].

    Args:
        logits: ``(N, C)``, of the label words on ``problem.test``.
        problem: The problem.

    Returns:
        ``score`` (by the task's metric) and ``accuracy``; the same with ``majority_`` and, where a
        label word is Yes, ``constant_yes_`` before it: what constant predictors score.
    """
    labels = problem.test.labels.numpy()
    predictions = logits.argmax(-1).cpu().numpy()
    scores = {}
    for suffix, metric in (("score", METRICS[problem.task.metric]), ("accuracy", accuracy)):
        scores[suffix] = float(metric(labels, predictions))
        scores[f"majority_{suffix}"] = majority_score(labels, metric)
        if "Yes" in problem.label_words:
            yes = problem.label_words.index("Yes")
            scores[f"constant_yes_{suffix}"] = constant_score(labels, yes, metric)
    return scores
