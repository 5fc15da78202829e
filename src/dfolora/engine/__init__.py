"""The evaluation engine: a population of interventions to label-word logits, exactly.

It shares, trims and packs what one padded forward a candidate would repeat; memory bounds how much
goes through the model at once. Objectives turn the logits into one loss a candidate.
"""

from dfolora.engine.forward import Answers, Engine, Interventions, answers, classify
from dfolora.engine.objective import (
    AGAINST_OTHERS,
    LOSSES,
    NORMALISED,
    check_objective,
    cross_entropy,
    metric_objective,
)
from dfolora.engine.readout import Affine, SolvedReadout, check_readout
from dfolora.engine.work import TARGETS, Shape, Work, work_of

__all__ = [
    "AGAINST_OTHERS",
    "LOSSES",
    "NORMALISED",
    "TARGETS",
    "Affine",
    "Answers",
    "Engine",
    "Interventions",
    "Shape",
    "SolvedReadout",
    "Work",
    "answers",
    "check_objective",
    "check_readout",
    "classify",
    "cross_entropy",
    "metric_objective",
    "work_of",
]
