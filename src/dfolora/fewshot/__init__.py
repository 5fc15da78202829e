"""A few-shot problem from task to fitted predictor: the library in one call.

ProblemSpec poses a task for a model and a seed; `fit` draws, encodes and fits.
`score_test` reads test scores beside what constant predictors score.
"""

from dfolora.fewshot.fitting import fit
from dfolora.fewshot.problem import Problem, ProblemSpec, TaskRows
from dfolora.fewshot.score import score_test

__all__ = [
    "Problem",
    "ProblemSpec",
    "TaskRows",
    "fit",
    "score_test",
]
