"""Derivative-free search: optimizers, the subspaces they search, the loop, and dev selection.

An optimizer asks and tells vectors; a subspace turns one into an intervention.
`tune` is the only loop; `DevSelection` keeps the solution that does best on dev.
"""

from dfolora.search.evaluator import Evaluation, Evaluator, PopulationEvaluator, Remembering
from dfolora.search.loop import INCUMBENTS, SCHEDULES, tune
from dfolora.search.selection import SELECTIONS, DevPoint, DevSelection, Seen, by_score

__all__ = [
    "INCUMBENTS",
    "SCHEDULES",
    "SELECTIONS",
    "DevPoint",
    "DevSelection",
    "Evaluation",
    "Evaluator",
    "PopulationEvaluator",
    "Remembering",
    "Seen",
    "by_score",
    "tune",
]
