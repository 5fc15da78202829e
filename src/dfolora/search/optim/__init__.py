"""Derivative-free optimizers with one interface, `Optimizer`: vectors and losses, no model."""

from dfolora.search.optim.cma import Cma
from dfolora.search.optim.fwa import Lotfwa
from dfolora.search.optim.low_rank import LowRank
from dfolora.search.optim.nevergrad import Nevergrad
from dfolora.search.optim.optimizer import (
    Losses,
    Optimizer,
    OptimizerFactory,
    Point,
    Population,
    Turn,
    Turns,
    Vector,
)
from dfolora.search.optim.probing import Probing
from dfolora.search.optim.random_search import RandomSearch
from dfolora.search.optim.two_stage import TwoStage
from dfolora.search.optim.zeroth_order import ZerothOrder

__all__ = [
    "Cma",
    "Losses",
    "Lotfwa",
    "LowRank",
    "Nevergrad",
    "Optimizer",
    "OptimizerFactory",
    "Point",
    "Population",
    "Probing",
    "RandomSearch",
    "Turn",
    "Turns",
    "TwoStage",
    "Vector",
    "ZerothOrder",
]
