"""Scores a test set, beside what constant predictors score."""

import warnings
from collections.abc import Callable, Mapping
from statistics import fmean

import torch
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
    predict: Callable[[Batch], Tensor], problem: Problem, own: Tensor
) -> Mapping[str, float]:
    """Scores on the test set in other prompts, by the task's metric, in [0, 1].

    Args:
        predict: Logits of a batch, ``(N, C)``.
        problem: With ``paraphrases``.
        own: The logits in the prompt of the fit, ``(N, C)``.

    Returns:
        ``prompt_NAME`` of each; of these and ``own`` together ``prompts_mean`` and
        ``prompts_worst``, ``prompts_instance`` (as of ``most_certain``) and ``prompts_ensemble``
        (as of ``ensemble``). Empty if there are no paraphrases.

    Raises:
        UserError: The model gave NaN or infinity for all rows of one.
    """
    if not problem.paraphrases:
        return {}
    metric, labels = METRICS[problem.task.metric], problem.test.labels.numpy()
    logits = {"": own.cpu()}
    for name, batch in problem.paraphrases.items():
        logits[name] = predict(batch).cpu()
        count_not_finite(logits[name], f"test row in prompt {name}")
    by_prompt = {name: float(metric(labels, each.argmax(-1))) for name, each in logits.items()}
    every = torch.stack([*logits.values()])
    return {
        **{f"prompt_{name}": by_prompt[name] for name in problem.paraphrases},
        "prompts_mean": fmean(by_prompt.values()),
        "prompts_worst": min(by_prompt.values()),
        "prompts_instance": float(metric(labels, most_certain(every))),
        "prompts_ensemble": float(metric(labels, ensemble(every))),
    }


def most_certain(logits: Tensor) -> Tensor:
    """Each row's prediction in the prompt on which the model is most certain: ``(N,)``.

    That is where the entropy of the class probabilities is lowest, and of equals the first. Logits
    that are not finite tell nothing.

    Args:
        logits: ``(M, N, C)``, in M prompts.
    """
    entropies = torch.special.entr(_probabilities(logits)).sum(-1).nan_to_num(nan=torch.inf)
    chosen = entropies.argmin(0, keepdim=True)
    return logits.argmax(-1).gather(0, chosen)[0]


def ensemble(logits: Tensor) -> Tensor:
    """Each row's prediction by the mean of the class probabilities in all prompts: ``(N,)``.

    Args:
        logits: ``(M, N, C)``, in M prompts. Those that are not finite are left out.
    """
    return _probabilities(logits).nanmean(0).argmax(-1)


def _probabilities(logits: Tensor) -> Tensor:
    """Of the classes, ``(M, N, C)``; NaN in all of a row that has a logit that is not finite."""
    finite = logits.isfinite().all(-1, keepdim=True)
    return logits.double().softmax(-1).where(finite, torch.nan)


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
