"""What is searched: a map from one vector a block to what that block changes in the model.

Letters: P candidates, L blocks, d search dimension.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Encode, Encoder
from dfolora.model import Architecture, Backbone, Intervention

Array = NDArray[np.float64]
Change = TypeVar("Change", bound=Intervention)


class Subspace(Protocol):
    """A built map; z = 0 is the base model exactly."""

    blocks: int
    """L."""
    stored: int
    """Parameters that a solution adds to the model."""

    def intervention(self, block: int, candidates: Array) -> Intervention:
        """What P candidates for one block change: ``(P, d) -> Intervention``."""
        ...

    def incumbents(
        self, solution: Array, *, without: int | None = None
    ) -> Mapping[int, Intervention]:
        """What a solution ``(L, d)`` changes, by layer: nothing where z is 0.

        A block whose vector is the same as last time gets the same object as then.

        Args:
            solution: One vector a block.
            without: A block to leave out.
        """
        ...

    def save(self, folder: Path, backbone: Backbone, solution: Array) -> None:
        """Write what a solution ``(L, d)`` adds to the model."""
        ...


class SubspaceSpec(Protocol):
    """How search vectors become interventions; ``build`` draws the map."""

    @property
    def dim(self) -> int:
        """d, the length of one block's search vector."""
        ...

    def blocks(self, architecture: Architecture) -> int:
        """L for such a model."""
        ...

    def check(self, architecture: Architecture) -> None:
        """Raise UserError if this cannot be built for a model of that architecture."""
        ...

    def encoder(self, plain: Encoder) -> Encode:
        """How rows are put to the model: the plain prompt, or with something to change."""
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
    """The current solution's interventions, made anew only where a vector has changed.

    Args:
        make: The intervention of one candidate ``(1, d)`` for a block.
    """

    def __init__(self, make: Callable[[int, Array], Change]) -> None:
        self._make = make
        self._known: dict[int, tuple[bytes, Change]] = {}

    def __call__(self, solution: Array, without: int | None) -> dict[int, Change]:
        return {
            block: self._one(block, z)
            for block, z in enumerate(solution)
            if block != without and z.any()
        }

    def _one(self, block: int, z: Array) -> Change:
        known = self._known.get(block)
        if known is None or known[0] != z.tobytes():
            known = z.tobytes(), self._make(block, z[None])
            self._known[block] = known
        return known[1]
