"""A few-shot problem from task or texts to fitted predictor: the library in one call.

FewShotClassifier fits texts and classes as scikit-learn's estimators do, saves and loads.
Fitted is a fit with all that it needs, whoever made it; Saved is its folder; push uploads it.
ProblemSpec poses a task for a model and a seed; `fit` draws, encodes and fits.
`score_test` reads test scores beside what constant predictors score.
`foreseen` counts the FLOPs that a fit and its test will take.
"""

from dfolora.fewshot.card import About
from dfolora.fewshot.classifier import FewShotClassifier, NotFittedError
from dfolora.fewshot.fitting import fit
from dfolora.fewshot.foreseen import Foreseen, foreseen
from dfolora.fewshot.kinds import fitted_of
from dfolora.fewshot.problem import Problem, ProblemSpec, Source, TaskRows
from dfolora.fewshot.publish import push
from dfolora.fewshot.saved import Fitted, Saved
from dfolora.fewshot.score import score_paraphrases, score_test

__all__ = [
    "About",
    "FewShotClassifier",
    "Fitted",
    "Foreseen",
    "NotFittedError",
    "Problem",
    "ProblemSpec",
    "Saved",
    "Source",
    "TaskRows",
    "fit",
    "fitted_of",
    "foreseen",
    "push",
    "score_paraphrases",
    "score_test",
]
