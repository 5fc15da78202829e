"""Test scores, and the constant predictors that they must be read beside."""

from collections.abc import Mapping

from torch import Tensor

from dfolora.metric import METRICS, accuracy, constant_score, majority_score
from dfolora.problem import Problem


def score_test(logits: Tensor, problem: Problem) -> Mapping[str, float]:
    """Scores in [0, 1] of one predictor on the test set, by name.

    Args:
        logits: ``(N, C)``, of the label words on ``problem.test``.
        problem: The problem.

    Returns:
        ``score`` (the task's metric) and ``accuracy``; ``majority`` and, where a label word is
        Yes, ``constant_yes``: what constant predictors score on the same rows.
    """
    labels, metric = problem.test.labels.numpy(), METRICS[problem.task.metric]
    predictions = logits.argmax(-1).cpu().numpy()
    scores = {
        "score": float(metric(labels, predictions)),
        "accuracy": float(accuracy(labels, predictions)),
        "majority": majority_score(labels, metric),
    }
    if "Yes" in problem.label_words:
        yes = problem.label_words.index("Yes")
        scores["constant_yes"] = constant_score(labels, yes, metric)
    return scores
