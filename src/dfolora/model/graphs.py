"""CUDA graphs of layers' passes: a pass that recurs is recorded, and then launched as one.

A pass launches some ten kernels, and Python takes longer to ask for them than a GPU to run them if
there are few tokens. What is recorded reads and writes where it did then. So the hidden states of
candidates have one place, which each layer reads and writes over, and so have a layer's factors or
prompt vectors, which are copied there when they are others.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dfolora.model.intervention import Intervention
from dfolora.model.layer import Packed

AFTER = 2
"""Passes before one is recorded: libraries set themselves up in the first ones, and evaluations of
a single solution never have as many."""


class Passes(Protocol):
    """A layer as ``Layer``'s call."""

    def __call__(
        self,
        hidden: Tensor,
        packed: Packed,
        intervention: Intervention | None = None,
        *,
        answers_only: bool = False,
    ) -> Tensor:
        """Pass candidates through the layer."""
        ...


def recorded(layers: Sequence[Passes], device: torch.device, numbers: int) -> list[Passes]:
    """Layers whose passes are recorded; the result is overwritten by the next pass of any of them.

    Args:
        layers: The model's.
        device: A CUDA device.
        numbers: The most numbers that the hidden states of a pass have.
    """
    place = _Place(device, numbers)
    return [_Recorded(layer, place) for layer in layers]


class _Place:
    """What all recorded passes share: the memory they use, and the stream they are recorded on."""

    def __init__(self, device: torch.device, numbers: int) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.device = device
        self._numbers = numbers
        self._room: Tensor | None = None

    def of(self, hidden: Tensor) -> Tensor:
        """Where hidden states of this shape have their place."""
        if self._room is None:
            self._room = hidden.new_empty(self._numbers)
        return self._room[: hidden.numel()].view(hidden.shape)


class _Recorded:
    """A layer, and its passes that are recorded, by what may differ between them but numbers."""

    def __init__(self, layer: Passes, place: _Place) -> None:
        self._layer = layer
        self._place = place
        self._made = Counter[Hashable]()
        self._passes = dict[Hashable, _Pass]()

    def __call__(
        self,
        hidden: Tensor,
        packed: Packed,
        intervention: Intervention | None = None,
        *,
        answers_only: bool = False,
    ) -> Tensor:
        kind = None if intervention is None else intervention.kind
        key = id(packed.pack), hidden.shape, kind, answers_only
        if key not in self._passes:
            self._made[key] += 1
            if self._made[key] <= AFTER:
                return self._layer(hidden, packed, intervention, answers_only=answers_only)
            self._passes[key] = _Pass(
                self._layer, self._place, hidden, packed, intervention, answers_only=answers_only
            )
        return self._passes[key](hidden, intervention)


class _Pass:
    """A recorded pass."""

    def __init__(
        self,
        layer: Passes,
        place: _Place,
        hidden: Tensor,
        packed: Packed,
        intervention: Intervention | None,
        *,
        answers_only: bool,
    ) -> None:
        self._hidden = place.of(hidden)
        self._packed = packed  # whose tensors it reads; so no other pack has this one's id
        self._given = intervention
        self._own = None if intervention is None else intervention.cloned()
        self._graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(self._graph, pool=place.pool, stream=place.stream)
        # Where a recording cannot be ended, torch leaves its stream the current one.
        with torch.cuda.stream(torch.cuda.current_stream(place.device)), recording:
            left = layer(self._hidden, packed, self._own, answers_only=answers_only)
            # At the answers alone it is small.
            self._left = left if answers_only else self._hidden.copy_(left)

    def __call__(self, hidden: Tensor, intervention: Intervention | None) -> Tensor:
        if hidden.data_ptr() != self._hidden.data_ptr():
            self._hidden.copy_(hidden)
        if intervention is not self._given:
            assert self._own is not None
            assert intervention is not None
            torch._foreach_copy_(self._own.tensors, intervention.tensors)
            self._given = intervention
        self._graph.replay()
        return self._left
