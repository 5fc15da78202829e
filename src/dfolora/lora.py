"""LoRA factors of one layer, and the context in which a frozen model uses them.

Low-rank adaptation (Hu et al. 2021) in the row-vector convention of Jin, Liu, Tan 2024, Eq. 4:
``x W + s (x A) B`` with ``A = down`` and ``B = up``. Letters: P candidates, B sequences, T tokens,
r rank.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """One linear map of the model, possibly a block of columns of a fused module."""

    module: nn.Module
    """The module whose output holds the map's output."""
    path: str
    """Its dotted name in the whole model."""
    columns: slice
    """Where in the last axis of that output this map's own output lies."""
    d_in: int
    d_out: int


@dataclass(frozen=True, kw_only=True)
class LoraFactors:
    """The low-rank update of one map, for P candidates at once."""

    down: Tensor
    """A: ``(P, d_in, r)``, float32."""
    up: Tensor
    """B: ``(P, r, d_out)``, float32, the scaling included."""

    def delta(self, x: Tensor) -> Tensor:
        """``(x A) B`` per candidate: ``(P * B, T, d_in) -> (P * B, T, d_out)``, candidate-major."""
        candidates = x.float().reshape(len(self.down), -1, x.shape[-1])
        update = torch.bmm(torch.bmm(candidates, self.down), self.up)
        return update.to(x.dtype).reshape(*x.shape[:-1], -1)


@dataclass(frozen=True, kw_only=True)
class LayerLora:
    """An intervention: the LoRA factors of one layer's maps, by map name (q, k, v, o)."""

    layer: int
    factors: Mapping[str, LoraFactors]


@contextmanager
def adapted(updates: Iterable[tuple[LinearMap, LoraFactors]]) -> Iterator[None]:
    """Inside, each map adds its factors' ``delta``; on leaving, even by an error, none does.

    The model's weights are never written. Several updates of one module, as in GPT-2's fused
    query-key-value map, add up in their own columns.
    """
    with ExitStack() as stack:
        for linear, factors in updates:
            handle = linear.module.register_forward_hook(_adder(linear, factors))
            stack.callback(handle.remove)
        yield


def _adder(linear: LinearMap, factors: LoraFactors) -> Any:
    def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output[..., linear.columns] += factors.delta(args[0])
        return output

    return add
