"""Derivative-free search: optimizers, the subspaces they search, the loop, and dev selection.

An optimizer asks and tells vectors; a subspace turns one into an intervention.
`tune` is the only loop; `DevSelection` keeps the solution that does best on dev.
"""

from dfolora.search.evaluator import (
    Answer,
    Evaluation,
    Evaluator,
    Memo,
    PopulationEvaluator,
    Remembered,
    forgetful,
)
from dfolora.search.loop import INCUMBENTS, SCHEDULES, tune
from dfolora.search.selection import SELECTIONS, DevPoint, DevSelection, by_score

__all__ = [
    "INCUMBENTS",
    "SCHEDULES",
    "SELECTIONS",
    "Answer",
    "DevPoint",
    "DevSelection",
    "Evaluation",
    "Evaluator",
    "Memo",
    "PopulationEvaluator",
    "Remembered",
    "by_score",
    "forgetful",
    "tune",
]
