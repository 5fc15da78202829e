"""Blocks of several layers: their vectors end to end, searched as one."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfolora.model import Backbone, Intervention
from dfolora.search.subspace.subspace import Subspace

Array = NDArray[np.float64]


class Grouped:
    """A subspace whose blocks are some blocks of another, side by side.

    Args:
        inner: A subspace of d dimensions.
        groups: Which of its blocks are one here; none is larger than the first, g. A group of k has
            k d dimensions, and in a solution, ``(L, g d)``, zeros after them. Blocks of the inner
            subspace that are in no group stay at z = 0.
    """

    def __init__(self, inner: Subspace, groups: Sequence[Sequence[int]]) -> None:
        self.blocks = len(groups)
        self.stored = inner.stored
        self._inner = inner
        self._groups = groups

    def interventions(self, block: int, candidates: Array) -> dict[int, Intervention]:
        """Those of the block's members: ``(P, k d)`` to layers."""
        members = self._groups[block]
        parts = np.split(candidates, len(members), axis=1)
        changes: dict[int, Intervention] = {}
        for member, part in zip(members, parts, strict=True):
            changes |= self._inner.interventions(member, np.ascontiguousarray(part))
        return changes

    def incumbents(
        self, solution: Array, *, without: Container[int] = ()
    ) -> dict[int, Intervention]:
        """Those of all blocks' members: ``(L, g d)`` to layers."""
        left_out = {
            member
            for block, members in enumerate(self._groups)
            if block in without
            for member in members
        }
        return dict(self._inner.incumbents(self._whole(solution), without=left_out))

    def found(self, solution: Array) -> Mapping[str, float]:
        """What the inner subspace finds."""
        return self._inner.found(self._whole(solution))

    def save(self, folder: Path, backbone: Backbone, solution: Array) -> None:
        """Write what the inner subspace writes."""
        self._inner.save(folder, backbone, self._whole(solution))

    def _whole(self, solution: Array) -> Array:
        """The inner subspace's solution."""
        parts = solution.reshape(self.blocks, len(self._groups[0]), -1)
        whole = np.zeros((self._inner.blocks, parts.shape[2]))
        for members, own in zip(self._groups, parts, strict=True):
            whole[members] = own[: len(members)]
        return whole
