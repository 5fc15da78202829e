"""Scores a test set, beside what constant predictors score."""

import warnings
from collections.abc import Callable, Mapping
from statistics import fmean

from torch import Tensor

from dfolora.data import METRICS, Batch, accuracy, constant_score, majority_score
from dfolora.errors import UserError
from dfolora.fewshot.problem import Problem

REMEDY = "Check that its weights are whole and finite, or use precision=fp32."


def score_test(logits: Tensor, problem: Problem) -> Mapping[str, float]:
    """One predictor's scores on the test set by name, scores in [0, 1].

    Args:
        logits: ``(N, C)``, of the label words on ``problem.test``.
        problem: The problem.

    Returns:
        ``score`` (by the task's metric) and ``accuracy``; the same with ``majority_`` and, where a
        label word is Yes, ``constant_yes_`` before it: what constant predictors score. Beside them
        ``not_finite``, the number of rows for which the model gave NaN or infinity.

    Raises:
        UserError: It gave that for all rows.
    """
    not_finite = count_not_finite(logits, "test row")
    labels = problem.test.labels.numpy()
    predictions = logits.argmax(-1).cpu().numpy()
    scores = {"not_finite": float(not_finite)}
    for suffix, metric in (("score", METRICS[problem.task.metric]), ("accuracy", accuracy)):
        scores[suffix] = float(metric(labels, predictions))
        scores[f"majority_{suffix}"] = majority_score(labels, metric)
        if "Yes" in problem.label_words:
            yes = problem.label_words.index("Yes")
            scores[f"constant_yes_{suffix}"] = constant_score(labels, yes, metric)
    return scores


def score_paraphrases(
    predict: Callable[[Batch], Tensor], problem: Problem, own: float
) -> Mapping[str, float]:
    """Scores on the test set in other prompts, by the task's metric, in [0, 1].

    Args:
        predict: Logits of a batch, ``(N, C)``.
        problem: With ``paraphrases``.
        own: The score in the prompt of the fit.

    Returns:
        ``prompt_NAME`` of each; ``prompts_mean`` and ``prompts_worst`` of these and ``own``. Empty
        if there are no paraphrases.

    Raises:
        UserError: The model gave NaN or infinity for all rows of one.
    """
    if not problem.paraphrases:
        return {}
    metric, scores = METRICS[problem.task.metric], dict[str, float]()
    for name, batch in problem.paraphrases.items():
        logits = predict(batch)
        count_not_finite(logits, f"test row in prompt {name}")
        scores[f"prompt_{name}"] = float(metric(batch.labels, logits.argmax(-1).cpu()))
    every = [own, *scores.values()]
    return scores | {"prompts_mean": fmean(every), "prompts_worst": min(every)}


def count_not_finite(logits: Tensor, row: str) -> int:
    """Rows with a logit that is NaN or infinite, whose predictions mean nothing.

    Args:
        logits: ``(N, C)``.
        row: What a row is called.

    Raises:
        UserError: There are no others.

    Warns:
        RuntimeWarning: There are some.
    """
    count, rows = int((~logits.isfinite()).any(-1).sum()), len(logits)
    if count and count == rows:
        raise UserError(f"The model's logits are NaN or infinite for every {row}. {REMEDY}")
    if count:
        warnings.warn(
            f"The model's logits are NaN or infinite for {count} of {rows} {row}s, whose "
            f"predictions mean nothing. {REMEDY}",
            RuntimeWarning,
            stacklevel=2,
        )
    return count
