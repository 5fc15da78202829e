"""Blocks of several layers: their vectors end to end, searched as one."""

from collections.abc import Container
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfolora.model import Backbone, Intervention
from dfolora.search.subspace.subspace import Subspace

Array = NDArray[np.float64]


class Grouped:
    """A subspace whose blocks are some consecutive blocks of another, side by side.

    Args:
        inner: A subspace of L blocks and d dimensions.
        together: g, a divisor of L. Here are L / g blocks and g d dimensions.
    """

    def __init__(self, inner: Subspace, together: int) -> None:
        self.blocks = inner.blocks // together
        self.stored = inner.stored
        self._inner = inner
        self._together = together

    def interventions(self, block: int, candidates: Array) -> dict[int, Intervention]:
        """Those of the block's members: ``(P, g d)`` to layers."""
        parts = np.split(candidates, self._together, axis=1)
        changes: dict[int, Intervention] = {}
        for member, part in zip(self._members(block), parts, strict=True):
            changes |= self._inner.interventions(member, np.ascontiguousarray(part))
        return changes

    def incumbents(
        self, solution: Array, *, without: Container[int] = ()
    ) -> dict[int, Intervention]:
        """Those of all blocks' members: ``(L / g, g d)`` to layers."""
        left_out = {
            member
            for block in range(self.blocks)
            if block in without
            for member in self._members(block)
        }
        return dict(self._inner.incumbents(self._apart(solution), without=left_out))

    def save(self, folder: Path, backbone: Backbone, solution: Array) -> None:
        """Write what the inner subspace writes."""
        self._inner.save(folder, backbone, self._apart(solution))

    def _members(self, block: int) -> range:
        return range(block * self._together, (block + 1) * self._together)

    def _apart(self, solution: Array) -> Array:
        return solution.reshape(self.blocks * self._together, -1)
