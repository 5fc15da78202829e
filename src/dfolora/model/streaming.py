"""Layers whose weights stay in host memory and are lent to the device while they run.

The device holds two layers' weights: those of the layer that runs, and those of the next one, which
are copied meanwhile. So whoever takes all work through one layer before the next has each layer
copied once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from dfolora.model.layer import Layer, Projected

ALIGNMENT = 512
"""Weights begin at multiples of so many bytes, as those do that torch allocates on a GPU: what a
product gives may depend on where its operands begin."""

RATES = {"cpu": inf, "cuda": 25e9}
"""Bytes a second to a device, about: of PCIe 4.0's 31.5e9 by sixteen lanes. On a CPU nobody waits
while they come."""

Holder = dict[str, Any]
"""A module's parameters or buffers by name."""


class Streaming:
    """Lends the layers' weights to the device.

    Args:
        modules: The layers. Their weights move to host memory for good, one layer's side by side,
            pinned if the device is a GPU.
        device: Where they run.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        self._stored = [_Stored.of(module, device) for module in modules]
        size = max(stored.layer.numel() for stored in self._stored)
        self._slots = [
            _Slot(buffer=torch.empty(size, dtype=torch.uint8, device=device)) for _ in range(2)
        ]
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._copying is not None:
            for slot in self._slots:  # not to be given to others before a copy is over
                slot.buffer.record_stream(self._copying)

    @property
    def nbytes(self) -> int:
        """Bytes of the device that hold layers' weights."""
        return sum(slot.buffer.nbytes for slot in self._slots)

    @property
    def layer_nbytes(self) -> int:
        """Bytes of the largest layer's weights."""
        return self._slots[0].buffer.nbytes

    @property
    def seconds(self) -> float:
        """How long a layer's weights take to come to the device, about."""
        return self.layer_nbytes / RATES[self._device.type]

    @contextmanager
    def lent(self, index: int) -> Iterator[None]:
        """A context in which a layer's modules have their weights on the device.

        The next layer's are then on their way.
        """
        slot = self._filled(index)
        if index + 1 < len(self._stored):
            self._filled(index + 1)
        if slot.copied is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.copied)
        holders = self._stored[index].holders
        kept = [holder[name] for holder, name in holders]
        try:
            for (holder, name), weight in zip(holders, slot.weights, strict=True):
                holder[name] = weight
            yield
        finally:
            for (holder, name), weight in zip(holders, kept, strict=True):
                holder[name] = weight

    def _filled(self, index: int) -> "_Slot":
        """The slot with a layer's weights, which are copied unless they are there."""
        slot, stored = self._slots[index % len(self._slots)], self._stored[index]
        if slot.index != index:
            slot.index = None  # until all is there, for this may be interrupted
            slot.weights = _laid_out(stored.weights, slot.buffer, lambda _weight, place: place)
            self._copy(stored.layer, slot)
            slot.index = index
        return slot

    def _copy(self, layer: Tensor, slot: "_Slot") -> None:
        place = slot.buffer[: layer.numel()]
        if self._copying is None:
            place.copy_(layer)
            return
        # What has been asked of the device so far may still use the layer that was there.
        self._copying.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copying):
            place.copy_(layer, non_blocking=True)
            slot.copied = self._copying.record_event()


class StreamedLayer:
    """A layer of the model whose weights are lent to it at each call of a method of ``Layer``.

    Args:
        layer: The layer.
        index: Its number.
        streaming: Lends its weights.
    """

    def __init__(self, layer: Layer, index: int, streaming: Streaming) -> None:
        self.maps = layer.maps
        self._layer = layer
        self._index = index
        self._streaming = streaming

    def __call__(self, *given: Any, **named: Any) -> Tensor:
        with self._streaming.lent(self._index):
            return self._layer(*given, **named)

    def project(self, *given: Any, **named: Any) -> Projected:
        with self._streaming.lent(self._index):
            return self._layer.project(*given, **named)

    def attend(self, *given: Any, **named: Any) -> Tensor:
        with self._streaming.lent(self._index):
            return self._layer.attend(*given, **named)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A layer's weights in host memory."""

    layer: Tensor
    """All of them, bytes."""
    weights: Sequence[Tensor]
    """Each of them, in these bytes."""
    holders: Sequence[tuple[Holder, str]]
    """Where the layer's modules have them."""

    @classmethod
    def of(cls, module: nn.Module, device: torch.device) -> "_Stored":
        """Move a layer's weights to where they are stored."""
        every: Iterator[Holder] = chain.from_iterable(
            (part._parameters, part._buffers) for part in module.modules()
        )
        holders = [
            (holder, name)
            for holder in every
            for name, weight in holder.items()
            if weight is not None
        ]
        # Joined weights are parts of one storage, one after another, and stay so.
        places = dict[int, int]()
        holders.sort(key=lambda held: places.setdefault(_storage(held[0][held[1]]), len(places)))
        weights: list[Tensor] = [holder[name] for holder, name in holders]
        layer = torch.empty(
            sum(map(_room, chain.from_iterable(map(plain_parts, weights)))),
            dtype=torch.uint8,
            device="cpu" if weights[0].is_cuda else weights[0].device,
            pin_memory=device.type == "cuda",
        )
        stored = _laid_out(weights, layer, lambda weight, place: place.copy_(weight))
        for (holder, name), weight in zip(holders, stored, strict=True):
            holder[name] = weight
        return cls(layer=layer, weights=stored, holders=holders)


@dataclass(kw_only=True)
class _Slot:
    """Room for a layer's weights on the device."""

    buffer: Tensor
    """Its bytes, as many as the largest layer has."""
    index: int | None = None
    """The layer whose weights are there."""
    weights: Sequence[Tensor] = field(default_factory=list)
    """Its weights, in the buffer."""
    copied: Any = None
    """On a GPU, the event after which they are."""


def _laid_out(
    weights: Iterable[Tensor], memory: Tensor, made: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor]:
    """Such weights one after another in some memory.

    Args:
        weights: Whose types and shapes they have.
        memory: Bytes.
        made: From a plain tensor and its place in the memory to the plain tensor there.
    """
    end, last = 0, torch.empty(0)

    def placed(weight: Tensor) -> Tensor:
        nonlocal end, last
        start = end if _follows(weight, last) else -(-end // ALIGNMENT) * ALIGNMENT
        end, last = start + weight.nbytes, weight
        return made(weight, memory[start:end].view(weight.dtype).view(weight.shape))

    return [
        nn.Parameter(like, requires_grad=False) if isinstance(weight, nn.Parameter) else like
        for weight in weights
        for like in [_mapped(weight, placed)]
    ]


def _storage(weight: Tensor) -> int:
    """Where the storage of a plain tensor begins, or of the first that a weight is made of."""
    return plain_parts(weight)[0].untyped_storage().data_ptr()


def _follows(weight: Tensor, last: Tensor) -> bool:
    """Whether a plain tensor begins where another one of its storage ends."""
    within = _storage(weight) == _storage(last)
    return within and weight.data_ptr() == last.data_ptr() + last.nbytes


def _room(weight: Tensor) -> int:
    return -(-weight.nbytes // ALIGNMENT) * ALIGNMENT


def _mapped(weight: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The same weight of other plain tensors."""
    if not hasattr(weight, "__tensor_flatten__"):
        return function(weight.detach())
    names, context = weight.__tensor_flatten__()
    parts = {name: _mapped(getattr(weight, name), function) for name in names}
    kind: Any = type(weight)
    same: Tensor = kind.__tensor_unflatten__(parts, context, weight.shape, weight.stride())
    return same


def plain_parts(weight: Tensor) -> list[Tensor]:
    """The plain tensors that a weight is made of: several in 8 bits, else itself."""
    if not hasattr(weight, "__tensor_flatten__"):
        return [weight]
    names, _context = weight.__tensor_flatten__()
    return [plain for name in names for plain in plain_parts(getattr(weight, name))]


def move_but_layers(model: Any, layers: str, device: torch.device) -> None:
    """Move all of a model but its layers to a device.

    Args:
        model: A ``transformers`` model.
        layers: The dotted name of the list of layers.
        device: Where the rest goes.
    """
    parent, _, name = layers.rpartition(".")
    holder = model.get_submodule(parent)
    kept = getattr(holder, name)
    setattr(holder, name, nn.ModuleList())
    try:
        model.to(device)
    finally:
        setattr(holder, name, kept)
