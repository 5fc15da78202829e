"""A few-shot problem from task or texts to fitted predictor: the library in one call.

FewShotClassifier fits texts and classes as scikit-learn's estimators do, saves and loads.
ProblemSpec poses a task for a model and a seed; `fit` draws, encodes and fits.
`score_test` reads test scores beside what constant predictors score.
"""

from dfolora.fewshot.classifier import FewShotClassifier, NotFittedError
from dfolora.fewshot.fitting import fit
from dfolora.fewshot.problem import Problem, ProblemSpec, Source, TaskRows
from dfolora.fewshot.score import score_paraphrases, score_test

__all__ = [
    "FewShotClassifier",
    "NotFittedError",
    "Problem",
    "ProblemSpec",
    "Source",
    "TaskRows",
    "fit",
    "score_paraphrases",
    "score_test",
]
