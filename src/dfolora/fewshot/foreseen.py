"""The arithmetic of a fit and its test, foreseen from their configuration; takes no weights."""

from dataclasses import dataclass

from dfolora.data import Batch
from dfolora.engine import Shape, work_of
from dfolora.fewshot.problem import Problem
from dfolora.methods import LayerwiseSearch, Method
from dfolora.model import Architecture


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """FLOPs of a fit and of its test, counted as ``engine.work`` counts them.

    Left out are a training's looks at dev, and what a fit saves that ends before its budget.
    """

    fit: float
    test: float


def foreseen(method: Method, architecture: Architecture, problem: Problem) -> Foreseen:
    """What a method is to do for a problem.

    Args:
        method: Its budget tells the passes over the train set; of a search in layers, they begin at
            the layer that is searched.
        architecture: Of the model.
        problem: Its rows tell the lengths.
    """
    # Left out is what low-rank terms add, some hundredths of a layer.
    shape = Shape(architecture=architecture, rank=0, classes=len(problem.task.classes))
    train, dev = (_lengths(batch) for batch in (problem.data.train, problem.data.dev))
    if isinstance(method, LayerwiseSearch):
        looks = 1 + method.budget // method.dev_interval
        fit = method.passes(shape, train) * _whole(shape, train) + looks * _whole(shape, dev)
    else:
        fit = method.budget * _whole(shape, train)
    return Foreseen(fit=fit, test=_whole(shape, _lengths(problem.test)))


def _whole(shape: Shape, lengths: list[int]) -> int:
    """FLOPs of a pass through the whole model."""
    return work_of(shape, 0, lengths, advanced=0).of(1)


def _lengths(batch: Batch) -> list[int]:
    return batch.attention_mask.sum(dim=1).tolist()
