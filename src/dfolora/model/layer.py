"""A frozen transformer layer on packed sequences, for one candidate or many at once.

The leading axis of all tensors is that of candidates. It has length 1 as long as all candidates
agree, so that shared work is done once; it grows to P where their factors first differ.
Letters: P candidates, M tokens and N sequences of a pack, H hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfolora.model.architecture import Architecture
from dfolora.model.factors import LinearMap, LoraFactors
from dfolora.model.intervention import Intervention
from dfolora.model.packing import Group, Pack

GELUS = {"GELUActivation": "none", "NewGELUActivation": "tanh", "GELUTanh": "tanh"}
"""Activations of transformers that torch has as one fused GELU, and its ``approximate``."""


@dataclass(frozen=True, kw_only=True)
class Projected:
    """A layer's frozen projections of its input, before any factors are added."""

    inputs: Mapping[str, Tensor]
    """Inputs of the maps q, k and v, ``(P, M or N, H)``."""
    outputs: Mapping[str, Tensor]
    """Their outputs, of the same shape."""
    residual: Tensor
    """The residual stream that attention is added to, ``(P, M or N, H)``."""
    answers_only: bool
    """Whether only the N answer positions have queries."""


class Layer:
    """A layer of the model.

    Args:
        module: The layer of transformers.
        maps: Its attention maps q, k, v and o.
        architecture: The model's.
    """

    def __init__(
        self, module: nn.Module, maps: Mapping[str, LinearMap], architecture: Architecture
    ) -> None:
        parts = architecture.family.parts
        self.maps = maps
        self._heads = architecture.heads
        self._norm_first = parts.norm_first
        self._attention_norm = module.get_submodule(parts.attention_norm)
        self._ffn_norm = module.get_submodule(parts.ffn_norm)
        self._up = module.get_submodule(parts.up)
        self._down = module.get_submodule(parts.down)
        self._activation = module.get_submodule(parts.activation)
        self._gelu = GELUS.get(type(self._activation).__name__)
        attention: Any = module.get_submodule(parts.attention)
        self._scale = float(attention.scaling)
        self._causal = bool(attention.is_causal)

    def __call__(
        self,
        hidden: Tensor,
        pack: Pack,
        intervention: Intervention | None = None,
        *,
        answers_only: bool = False,
    ) -> Tensor:
        """``(P, M, H) -> (P, M, H)``, or ``(P, N, H)`` at the answers alone.

        In a causal model, sequences must then end at their answers.
        """
        if intervention is None:
            return self.attend(self.project(hidden, pack, answers_only=answers_only), pack, {})
        entered = intervention.enter(hidden, pack)
        projected = self.project(entered, pack, answers_only=answers_only)
        return self.attend(projected, pack, intervention.factors)

    def project(self, hidden: Tensor, pack: Pack, *, answers_only: bool = False) -> Projected:
        """Apply the frozen maps q, k and v; candidates with the same input share the result."""
        normed = self._attention_norm(hidden) if self._norm_first else hidden
        asking = normed[:, pack.answers] if answers_only else normed
        inputs = {"q": asking, "k": normed, "v": normed}
        return Projected(
            inputs=inputs,
            outputs={name: self.maps[name](x) for name, x in inputs.items()},
            residual=hidden[:, pack.answers] if answers_only else hidden,
            answers_only=answers_only,
        )

    def attend(
        self, projected: Projected, pack: Pack, factors: Mapping[str, LoraFactors]
    ) -> Tensor:
        """Add the factors and run the rest of the layer."""
        q, k, v = (
            _adapted(projected.outputs[name], projected.inputs[name], factors.get(name))
            for name in ("q", "k", "v")
        )
        context = self._attention(q, k, v, pack, projected.answers_only)
        hidden = _adapted(self.maps["o"](context), context, factors.get("o"))
        hidden += projected.residual
        if self._norm_first:
            return self._feed_forward(self._ffn_norm(hidden)).add_(hidden)
        hidden = self._attention_norm(hidden)
        return self._ffn_norm(self._feed_forward(hidden).add_(hidden))

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        wide = self._up(hidden)
        if self._gelu is None:
            return self._down(self._activation(wide))
        torch.ops.aten.gelu_(wide, approximate=self._gelu)
        return self._down(wide)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, pack: Pack, answers_only: bool) -> Tensor:
        """Attention within each group, without padding: ``(P, M or N, H)``."""
        population = max(map(len, (q, k, v)))
        contexts = []
        for group in pack.groups:
            asking = group.sequences if answers_only else group.tokens
            mask = None if group.keys is None else self._mask(group, answers_only, population)
            queries = q[:, asking] if answers_only else group.padded(q[:, asking])
            keys, values = group.padded(k[:, group.tokens]), group.padded(v[:, group.tokens])
            context = functional.scaled_dot_product_attention(
                self._by_head(queries, group, population),
                self._by_head(keys, group, population),
                self._by_head(values, group, population),
                attn_mask=mask,
                is_causal=self._causal and mask is None and not answers_only,
                scale=self._scale,
            )
            context = context.transpose(1, 2).reshape(population, -1, q.shape[-1])
            contexts.append(context if answers_only else group.packed(context))
        return torch.cat(contexts, dim=1)

    def _by_head(self, x: Tensor, group: Group, population: int) -> Tensor:
        """``(P or 1, n T, H) -> (P n, heads, T, H / heads)``."""
        x = x.unflatten(1, (group.count, -1)).unflatten(-1, (self._heads, -1))
        return x.expand(population, -1, -1, -1, -1).flatten(0, 1).transpose(1, 2)

    def _mask(self, group: Group, answers_only: bool, population: int) -> Tensor:
        """The attention mask of a padded group: ``(P n, 1, T or 1, T)``, bool."""
        assert group.keys is not None
        mask = group.keys[:, None, None, :]
        if self._causal and not answers_only:
            length = group.keys.shape[1]
            mask = mask & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        return mask.repeat(population, 1, 1, 1)


def _adapted(output: Tensor, x: Tensor, factors: LoraFactors | None) -> Tensor:
    return output if factors is None else factors.added(output, x)
