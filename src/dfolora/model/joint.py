"""Linear maps of the same input in one product: their weights lie side by side in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfolora.model.factors import LinearMap


def can_join(modules: Sequence[Any]) -> bool:
    """Whether one product can do for these modules.

    They are several, of ``nn.Linear`` itself with plain weights, all with a bias or all without.
    """
    plain = all(
        type(module) is nn.Linear and type(module.weight) is nn.Parameter for module in modules
    )
    return len(modules) > 1 and plain and len({module.bias is None for module in modules}) == 1


def join(modules: Sequence[Any]) -> None:
    """Move the modules' weights, and their biases, side by side; each keeps its own, as a view.

    Args:
        modules: Such as ``can_join``.
    """
    for name in ("weight", "bias"):
        if getattr(modules[0], name) is not None:
            parts = [getattr(module, name) for module in modules]
            views = torch.cat(parts).split([*map(len, parts)])
            for module, view in zip(modules, views, strict=True):
                setattr(module, name, nn.Parameter(view, requires_grad=False))


def product(modules: Sequence[Any], x: Tensor) -> tuple[Tensor, dict[nn.Module, Tensor]]:
    """Apply joined modules.

    Returns:
        What they give, side by side, ``(..., d_in) -> (..., sum of d_out)``, and each one's part.
    """
    weight = _whole([module.weight for module in modules])
    biased = modules[0].bias is not None
    bias = _whole([module.bias for module in modules]) if biased else None
    joint = functional.linear(x, weight, bias)
    parts = joint.split([module.out_features for module in modules], dim=-1)
    return joint, dict(zip(modules, parts, strict=True))


def side_by_side(maps: Mapping[str, LinearMap]) -> dict[str, LinearMap]:
    """These maps, each a whole module, as columns of the product of all."""
    placed, end = dict[str, LinearMap](), 0
    width = sum(linear.place.d_out for linear in maps.values())
    for name, linear in maps.items():
        begin, end = end, end + linear.place.d_out
        place = replace(linear.place, d_module=width)
        placed[name] = replace(linear, place=place, columns=slice(begin, end))
    return placed


def _whole(parts: Sequence[Tensor]) -> Tensor:
    """The tensor that these are parts of, one after another."""
    first, end = parts[0], parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != end:
            raise RuntimeError(
                "A layer's q, k and v no longer lie side by side: their weights were replaced or "
                "moved after the Backbone was made. Make a new one of the model."
            )
        end += part.nbytes
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())
