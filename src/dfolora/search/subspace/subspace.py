"""Subspaces: maps from one vector per block to the block's intervention.

Letters: P candidates, L blocks, d search dimension.
"""

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Encode, Encoder
from dfolora.model import Architecture, Backbone, Intervention

Array = NDArray[np.float64]
Change = TypeVar("Change")


class Subspace(Protocol):
    """A built map; z = 0 is the base model exactly, or the adapter that was given."""

    blocks: int
    """Parts that take turns, L."""
    stored: int
    """The number of parameters that a solution adds to the model."""

    def interventions(self, block: int, candidates: Array) -> Mapping[int, Intervention]:
        """What P candidates ``(P, d)`` for one block change, by layer."""
        ...

    def incumbents(
        self, solution: Array, *, without: Container[int] = ()
    ) -> Mapping[int, Intervention]:
        """What a solution ``(L, d)`` changes, by layer; nothing where z = 0 is the base model.

        A block whose vector is the same as last time gets the same objects as then.

        Args:
            solution: One vector a block; a shorter one ends in zeros.
            without: Blocks to leave out.
        """
        ...

    def found(self, solution: Array) -> Mapping[str, float]:
        """Numbers of a solution ``(L, d)`` that say something by themselves, by name."""
        ...

    def save(self, folder: Path, backbone: Backbone, solution: Array) -> None:
        """Write what a solution ``(L, d)`` adds to the model."""
        ...


class SubspaceSpec(Protocol):
    """A search space; ``build`` draws its map."""

    @property
    def even(self) -> bool:
        """Whether z and -z give the same model, all other blocks being as they were."""
        ...

    def blocks(self, architecture: Architecture) -> int:
        """L for such a model."""
        ...

    def size(self, architecture: Architecture) -> int:
        """The length d of one block's search vector for such a model."""
        ...

    def check(self, architecture: Architecture) -> None:
        """Raise UserError if this cannot be built for a model of that architecture."""
        ...

    def encoder(self, plain: Encoder) -> Encode:
        """The encoder of rows: the plain prompt, or one with room for an intervention."""
        ...

    def build(
        self, backbone: Backbone, input_ids: Tensor, attention_mask: Tensor, seed: int
    ) -> Subspace:
        """Draw the map, scaled by the hidden states of one pass over the train set.

        Args:
            backbone: The model; used as it is, without any adaptation.
            input_ids: ``(N, T)``.
            attention_mask: ``(N, T)``.
            seed: The run's seed; the map is a function of it and the statistics.
        """
        ...


class Incumbents(Generic[Change]):
    """Caches the current solution's interventions; a block is rebuilt when its vector changes.

    Args:
        make: The intervention of one candidate ``(1, d)`` for a block.
        empty_at_zero: Whether a block whose vector is 0 has none.
    """

    def __init__(self, make: Callable[[int, Array], Change], *, empty_at_zero: bool = True) -> None:
        self._make = make
        self._empty_at_zero = empty_at_zero
        self._known: dict[int, tuple[bytes, Change]] = {}

    def __call__(self, solution: Array, without: Container[int]) -> dict[int, Change]:
        return {
            block: self._one(block, z)
            for block, z in enumerate(solution)
            if block not in without and (z.any() or not self._empty_at_zero)
        }

    def _one(self, block: int, z: Array) -> Change:
        known = self._known.get(block)
        if known is None or known[0] != z.tobytes():
            known = z.tobytes(), self._make(block, z[None])
            self._known[block] = known
        return known[1]
