"""Derivative-free optimizers behind one contract: :class:`~dfolora.optim.base.Optimizer`."""

from dfolora.optim.base import Losses, Optimizer, OptimizerFactory, Point, Population, Vector
from dfolora.optim.cma import Cma
from dfolora.optim.fwa import Lotfwa
from dfolora.optim.nevergrad import Nevergrad
from dfolora.optim.random_search import RandomSearch

__all__ = [
    "Cma",
    "Losses",
    "Lotfwa",
    "Nevergrad",
    "Optimizer",
    "OptimizerFactory",
    "Point",
    "Population",
    "RandomSearch",
    "Vector",
]
