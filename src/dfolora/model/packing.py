"""Packs of token sequences without padding, grouped by length for attention.

Letters: N sequences, n of them in a group, T their length, M tokens of a pack.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from math import ceil, log

import torch
from torch import Tensor

STEP = 1.25
"""Ratio between the lengths of neighbouring coarse groups."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Sequences that share one attention call: of equal length, or padded for it."""

    input_ids: Tensor
    """``(n, T)``, long."""
    tokens: slice
    """Their place among the pack's tokens."""
    sequences: slice
    """Their place among the pack's sequences."""
    places: Tensor | None
    """Their tokens' places among the ``n T`` padded positions; None if nothing is padded."""
    keys: Tensor | None
    """Which positions may be attended to, ``(n, T)``, bool; None for all."""

    @property
    def count(self) -> int:
        """n, the number of sequences."""
        return len(self.input_ids)

    @property
    def length(self) -> int:
        """T, the length of the longest."""
        return self.input_ids.shape[1]

    def padded(self, x: Tensor) -> Tensor:
        """Spread the tokens over all positions, zeros at padding.

        ``(P, _, ...) -> (P, n T, ...)``
        """
        if self.places is None:
            return x
        positions = x.new_zeros(len(x), self.input_ids.numel(), *x.shape[2:])
        return positions.index_copy_(1, self.places, x)

    def packed(self, x: Tensor) -> Tensor:
        """Drop the padding: ``(P, n T, ...) -> (P, _, ...)``."""
        return x if self.places is None else x[:, self.places]


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Sequences that go through the model together, in order of length."""

    rows: Tensor
    """Their row numbers in the batch, ``(N,)``."""
    groups: Sequence[Group]
    """Those of attention."""
    coarse: Sequence[Group]
    """The same sequences in few groups, for what costs little at a position."""
    starts: Tensor
    """The first token of each sequence among the M, ``(N,)``."""
    answers: Tensor
    """The token among the M where each answer is read, ``(N,)``."""
    size: int
    """M, the number of tokens."""
    masked: bool
    """Whether some of the tokens are padding, which nothing may attend to."""
    _boundaries: dict[tuple[int, bool], Tensor] = field(default_factory=dict, repr=False)

    @property
    def longest(self) -> int:
        """The length of the longest sequence."""
        return self.groups[-1].length

    def of_tokens(self, input_ids: Tensor) -> "Pack":
        """The pack of another batch, whose sequences have the same lengths and answers.

        Args:
            input_ids: All of its tokens, ``(N, T)``, on the pack's device.
        """

        def filled(groups: Sequence[Group]) -> list[Group]:
            rows = (self.rows[group.sequences] for group in groups)
            return [
                replace(group, input_ids=input_ids[own, : group.length])
                for group, own in zip(groups, rows, strict=True)
            ]

        groups = filled(self.groups)
        few = groups if self.coarse is self.groups else filled(self.coarse)
        return replace(self, groups=groups, coarse=few)

    def boundaries(self, population: int, *, answers_only: bool = False) -> Tensor:
        """Where each sequence begins, and the last one ends, if P packs lie one after another.

        Args:
            population: P.
            answers_only: Whether of each sequence only its answer lies there.

        Returns:
            ``(P N + 1,)``, int32, as kernels for sequences of various lengths take it.
        """
        wanted = population, answers_only
        if wanted not in self._boundaries:
            starts, size = self.starts, self.size
            if answers_only:
                starts, size = torch.arange(len(starts), device=starts.device), len(starts)
            packs = torch.arange(population, device=starts.device)[:, None] * size
            end = starts.new_full((1,), population * size)
            self._boundaries[wanted] = torch.cat([(packs + starts).flatten(), end]).int()
        return self._boundaries[wanted]


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """A batch's token sequences and the length that each needs; on the CPU."""

    input_ids: Tensor
    """``(N, T)``, padded on the right."""
    lengths: Tensor
    """Positions that go through the model, ``(N,)``."""
    real: Tensor
    """Positions that are not padding, ``(N,)``; padding is masked in attention."""
    answer: Tensor
    """The position where the answer is read, ``(N,)``."""

    def alike(self, other: "Sequences") -> bool:
        """Whether all but the tokens is the same."""
        parts = ("lengths", "real", "answer")
        return all(torch.equal(getattr(self, part), getattr(other, part)) for part in parts)

    def packs(self, tokens: int, device: torch.device, *, coarse: bool = False) -> Iterator[Pack]:
        """Cut into packs of at most ``tokens`` tokens, shortest first; a longer sequence is alone.

        Args:
            tokens: The largest M.
            device: The device of the packs' tensors.
            coarse: Group lengths within a factor ``STEP`` rather than equal ones. Fewer groups are
                fewer kernel launches on a GPU; on a CPU the padding costs more than it saves.
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
        few = self._groups(rows, starts, _coarse, device)
        begins = torch.tensor(starts[:-1])
        return Pack(
            rows=rows.to(device),
            groups=few if coarse else self._groups(rows, starts, int, device),
            coarse=few,
            starts=begins.to(device),
            answers=(begins + self.answer[rows]).to(device),
            size=starts[-1],
            masked=bool((self.real < self.lengths)[rows].any()),
        )

    def _groups(
        self,
        rows: Tensor,
        starts: Sequence[int],
        kind: Callable[[int], int],
        device: torch.device,
    ) -> list[Group]:
        """Neighbours whose lengths are of one kind."""
        groups, first = [], 0
        for _kind, members in groupby(self.lengths[rows].tolist(), key=kind):
            last = first + len(list(members))
            tokens, sequences = slice(starts[first], starts[last]), slice(first, last)
            groups.append(self._group(rows[sequences], tokens, sequences, device))
            first = last
        return groups

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
    """The coarse group of a length."""
    return ceil(log(length, STEP))
