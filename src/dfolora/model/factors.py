"""Linear maps of the model, and the LoRA factors added to their outputs.

Low-rank adaptation (Hu et al. 2021) in the row-vector convention of Jin, Liu, Tan 2024, Eq. 4:
``x W + s (x A) B`` with ``A = down`` and ``B = up``. Letters: P candidates, M tokens, r rank.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """A linear map of the model, possibly some columns of a fused module."""

    module: nn.Module
    """``nn.Linear`` or transformers' ``Conv1D``; its output contains the map's."""
    path: str
    """The module's dotted name in the model."""
    columns: slice
    """The map's columns in the module's output."""
    d_in: int
    d_out: int
    d_module: int
    """Output width of the whole module."""

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., d_in) -> (..., d_out)``; a fused module's other maps are not computed."""
        if self.d_module == self.d_out:
            return self.module(x)
        weight, bias = self._own
        if isinstance(self.module, nn.Linear):
            return functional.linear(x, weight, bias)
        rows = x.reshape(-1, self.d_in)
        return torch.addmm(bias, rows, weight).view(*x.shape[:-1], self.d_out)

    @cached_property
    def _own(self) -> tuple[Tensor, Tensor]:
        """Views of this map's part of the module's weight and bias."""
        weight, bias = self.module.get_parameter("weight"), self.module.get_parameter("bias")
        with torch.inference_mode(mode=False):  # int8 tensors cannot be sliced in it
            if isinstance(self.module, nn.Linear):
                return weight[self.columns], bias[self.columns]
            return weight[:, self.columns], bias[self.columns]


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
