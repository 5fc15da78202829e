"""Linear maps of the model, and the LoRA factors added to their outputs.

Low-rank adaptation (Hu et al. 2021) in the row-vector convention of Jin, Liu, Tan 2024, Eq. 4:
``x W + s (x A) B`` with ``A = down`` and ``B = up``. Letters: P candidates, M tokens, r rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class MapPlace:
    """Where a layer stores one of its attention maps."""

    module: str
    """Dotted name inside the layer."""
    columns: slice | Tensor
    """The map's columns in the module's output."""
    d_in: int
    d_out: int
    d_module: int
    """Output width of the whole module."""


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """A linear map of the model, possibly some columns of a fused module."""

    module: nn.Module
    """``nn.Linear`` or transformers' ``Conv1D``; its output contains the map's."""
    path: str
    """The module's dotted name in the model."""
    place: MapPlace
    """The map's sizes, and its columns in the module's output."""
    columns: slice | Tensor
    """These columns, as an index on the module's device."""

    @property
    def alone(self) -> bool:
        """Whether its module holds nothing else."""
        return self.place.d_module == self.place.d_out

    @property
    def weight(self) -> Tensor:
        """W, ``(d_in, d_out)``, float32; of a weight in 8 bits the numbers that it stands for."""
        stored: Any = self.module.weight
        weight = stored.dequantize() if hasattr(stored, "__tensor_flatten__") else stored
        output_last = weight.T if isinstance(self.module, nn.Linear) else weight
        # Layers that are streamed have their weights in host memory.
        columns = self.columns
        if isinstance(columns, Tensor):
            columns = columns.to(weight.device)
        return output_last[:, columns].detach().float()


@dataclass(frozen=True, kw_only=True)
class LoraFactors:
    """Low-rank updates of one map by P candidates."""

    down: Tensor
    """A: ``(P, d_in, r)``."""
    up: Tensor
    """B: ``(P, r, d_out)``, the scaling included."""

    def added(self, output: Tensor, x: Tensor) -> Tensor:
        """``output + (x A) B``.

        Args:
            output: The map's output at ``x``, ``(Px, M, d_out)``; overwritten if Px > 1.
            x: ``(Px, M, d_in)``: one input per candidate, one for all (Px = 1), or many inputs of
                one candidate (P = 1).

        Returns:
            ``(max(Px, P), M, d_out)``.
        """
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        candidates, d_in, rank = down.shape
        if 1 == candidates < len(x):
            rows, flat = x.reshape(-1, d_in), output.view(-1, output.shape[-1])
            return flat.addmm_(rows @ down[0], up[0]).view(output.shape)
        if len(x) > 1:
            return output.baddbmm_(torch.bmm(x, down), up)
        beside = down.transpose(0, 1).reshape(d_in, -1)  # all candidates' A in one product
        reduced = (x[0] @ beside).view(-1, candidates, rank).transpose(0, 1)
        return torch.baddbmm(output.expand(candidates, -1, -1), reduced, up)

    def part(self, candidates: slice) -> "LoraFactors":
        """The factors of some of the candidates."""
        return LoraFactors(down=self.down[candidates], up=self.up[candidates])

    def to(self, dtype: torch.dtype) -> "LoraFactors":
        """The factors, rounded to another type."""
        return LoraFactors(down=self.down.to(dtype), up=self.up.to(dtype))


def beside(parts: Sequence[tuple[LinearMap, LoraFactors]]) -> LoraFactors:
    """One module's factors: those of its maps side by side, r being the sum of theirs.

    Args:
        parts: The maps that are adapted, all in one module, and their factors.
    """
    (linear, factors), *others = parts
    if not others and linear.alone:
        return factors
    candidates = max(len(factors.down) for _linear, factors in parts)
    ups = []
    for linear, factors in parts:
        _, rank, _ = factors.up.shape
        up = factors.up.new_zeros(candidates, rank, linear.place.d_module)
        up[..., linear.columns] = factors.up
        ups.append(up)
    downs = [factors.down.expand(candidates, -1, -1) for _linear, factors in parts]
    return LoraFactors(down=torch.cat(downs, dim=2), up=torch.cat(ups, dim=1))
