"""A search's parts on a toy batch: subspace, evaluator, solution and candidates."""

from copy import copy
from dataclasses import replace
from itertools import chain, combinations

import numpy as np

from dfolora.engine.forward import Engine
from dfolora.model import Limits
from dfolora.search.evaluator import PopulationEvaluator
from dfolora.search.subspace import LoraSubspaceSpec

DIM = 96
SUBSETS = [
    "".join(maps) for maps in chain.from_iterable(combinations("qkvo", n) for n in range(1, 5))
]
"""Every set of attention maps."""


def limited(backbone, **limits):
    """The same model within other limits."""
    other = copy(backbone)
    other.limits = Limits(**limits)
    return other


def subspace_of(backbone, batch, **spec):
    """With a stretch of 2, so that candidates differ by far more than rounding."""
    built = LoraSubspaceSpec(**{"dim": DIM, "alpha": 2.0} | spec)
    return built.build(backbone, batch.input_ids, batch.attention_mask, 0)


def evaluator_of(
    backbone,
    batch,
    label_ids,
    *,
    carry=True,
    objective="ce",
    metric="accuracy",
    **spec,
):
    """An evaluator, and the subspace it searches."""
    subspace = subspace_of(backbone, batch, **spec)
    engine = Engine(backbone, batch, label_ids, carry=carry)
    return (
        PopulationEvaluator(engine, subspace, batch.labels, objective=objective, metric=metric),
        subspace,
    )


def in_float64(subspace):
    """The subspace with projections in float64: in float32 factors differ with the population."""
    subspace._projections = [
        replace(
            layer,
            down=[part.double() for part in layer.down],
            up=[part.double() for part in layer.up],
        )
        for layer in subspace._projections
    ]


def some_solution(candidates=5, *, layers=3, seed=2):
    """``(L, d)`` and ``(P, d)``, standard normal."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(layers, DIM)), rng.normal(size=(candidates, DIM))


def logits_of(engine, subspace, solution, block, candidates):
    """``(P, N, C)`` of a solution whose row ``block`` is each candidate in turn."""
    incumbents = subspace.incumbents(solution, without=[block])
    return engine(incumbents, subspace.interventions(block, candidates))
