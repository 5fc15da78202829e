"""Derivative-free search: optimizers, the subspaces they search, the loop, and dev selection.

An optimizer asks and tells vectors; a subspace turns one into an intervention.
`tune` is the only loop; `DevSelection` keeps the solution that does best on dev.
"""

from dfolora.search.evaluator import (
    Answer,
    Evaluation,
    Evaluator,
    Memo,
    Penalised,
    PopulationEvaluator,
    Remembered,
    forgetful,
)
from dfolora.search.generation import Generation
from dfolora.search.loop import INCUMBENTS, MEASURED, tune
from dfolora.search.minibatches import minibatches
from dfolora.search.price import PerFlop, PerRow, Price
from dfolora.search.schedule import (
    Bandit,
    LastK,
    Late,
    Lisa,
    RoundRobin,
    Schedule,
    Spread,
    WholeRounds,
)
from dfolora.search.selection import SELECTIONS, DevPoint, DevSelection, by_score

__all__ = [
    "INCUMBENTS",
    "MEASURED",
    "SELECTIONS",
    "Answer",
    "Bandit",
    "DevPoint",
    "DevSelection",
    "Evaluation",
    "Evaluator",
    "Generation",
    "LastK",
    "Late",
    "Lisa",
    "Memo",
    "Penalised",
    "PerFlop",
    "PerRow",
    "PopulationEvaluator",
    "Price",
    "Remembered",
    "RoundRobin",
    "Schedule",
    "Spread",
    "WholeRounds",
    "by_score",
    "forgetful",
    "minibatches",
    "tune",
]
