"""Sequences side by side without padding: cut into packs, grouped by length for attention.

Letters: N sequences, n of them in a group, T their length, M tokens of a pack.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import ceil, log

import torch
from torch import Tensor

STEP = 1.25
"""Ratio of neighbouring lengths where groups are coarse."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Neighbours in a pack that attend together: equally long, or padded within attention."""

    input_ids: Tensor
    """``(n, T)``, long."""
    tokens: slice
    """Where they lie among the pack's tokens, one sequence after the other."""
    sequences: slice
    """Where they lie among the pack's sequences."""
    places: Tensor | None
    """Where their tokens lie among the ``n T`` positions; None: they are all of these."""
    keys: Tensor | None
    """Which positions are real and may be attended to, ``(n, T)``, bool; None for all."""

    @property
    def count(self) -> int:
        """The number n of sequences."""
        return len(self.input_ids)

    def padded(self, x: Tensor) -> Tensor:
        """The tokens' values at all positions, 0 in the padding: ``(P, _, H) -> (P, n T, H)``."""
        if self.places is None:
            return x
        positions = x.new_zeros(len(x), self.input_ids.numel(), x.shape[-1])
        return positions.index_copy_(1, self.places, x)

    def packed(self, x: Tensor) -> Tensor:
        """The tokens' values out of all positions': ``(P, n T, H) -> (P, _, H)``."""
        return x if self.places is None else x[:, self.places]


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Sequences whose tokens go through the model together, in order of length."""

    rows: Tensor
    """Which rows of the batch they are, ``(N,)``."""
    groups: Sequence[Group]
    starts: Tensor
    """Where among the M tokens each sequence begins, ``(N,)``."""
    answers: Tensor
    """Where among the M tokens each sequence's answer is read, ``(N,)``."""
    size: int
    """M."""


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Token sequences as a batch has them, and how much of each is needed. On the CPU."""

    input_ids: Tensor
    """``(N, T)``, padded on the right."""
    lengths: Tensor
    """How many positions of each go through the model, ``(N,)``."""
    real: Tensor
    """How many of these are no padding, ``(N,)``: nobody attends to the rest."""
    answer: Tensor
    """The position that answers, ``(N,)``."""

    def packs(self, tokens: int, device: torch.device, *, coarse: bool = False) -> Iterator[Pack]:
        """Packs of at most so many tokens, or of a single longer sequence, shortest first.

        Args:
            tokens: M at most.
            device: Where their tensors are wanted.
            coarse: Few groups, of lengths within a factor ``STEP``, rather than one a length: each
                group costs a GPU some launches, while a CPU minds the padding more.
        """
        lengths = self.lengths.tolist()
        taken, size = list[int](), 0
        for row in torch.argsort(self.lengths, stable=True).tolist():
            if taken and size + lengths[row] > tokens:
                yield self._pack(taken, device, coarse)
                taken, size = [], 0
            taken.append(row)
            size += lengths[row]
        yield self._pack(taken, device, coarse)

    def _pack(self, taken: list[int], device: torch.device, coarse: bool) -> Pack:
        rows, lengths = torch.tensor(taken), self.lengths[taken].tolist()
        starts = [0, *accumulate(lengths)]
        groups, first = [], 0
        for _length, members in groupby(lengths, key=_coarse if coarse else None):
            last = first + len(list(members))
            tokens, sequences = slice(starts[first], starts[last]), slice(first, last)
            groups.append(self._group(rows[sequences], tokens, sequences, device))
            first = last
        begins = torch.tensor(starts[:-1])
        return Pack(
            rows=rows.to(device),
            groups=groups,
            starts=begins.to(device),
            answers=(begins + self.answer[rows]).to(device),
            size=starts[-1],
        )

    def _group(self, rows: Tensor, tokens: slice, sequences: slice, device: torch.device) -> Group:
        lengths = self.lengths[rows, None]
        positions = torch.arange(int(lengths.max()))
        kept = positions < lengths
        keys = positions < self.real[rows, None]
        return Group(
            input_ids=self.input_ids[rows, : len(positions)].to(device),
            tokens=tokens,
            sequences=sequences,
            places=None if kept.all() else kept.flatten().nonzero()[:, 0].to(device),
            keys=None if keys.all() else keys.to(device),
        )


def _coarse(length: int) -> int:
    """The number of steps up to the length."""
    return ceil(log(length, STEP))
