"""One frozen transformer layer on packed sequences, for one candidate or many at once.

Tensors have a leading axis of candidates. Where all candidates are still the same it has length 1,
and what is computed from it is computed once; it grows where their factors first tell them apart.
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
"""transformers' activations that are one fused operation of torch's, and its ``approximate``."""


@dataclass(frozen=True, kw_only=True)
class Projected:
    """What a layer makes of its input before any factors come in."""

    inputs: Mapping[str, Tensor]
    """What the maps q, k and v are applied to, ``(P, M or N, H)``."""
    outputs: Mapping[str, Tensor]
    """What they give, of the same shape."""
    residual: Tensor
    """What attention is added to, ``(P, M or N, H)``."""
    answers_only: bool
    """Whether queries are those of the N answers alone."""


class Layer:
    """A layer of the model.

    Args:
        module: The layer as transformers has it.
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
        """``(P, M, H) -> (P, M, H)``, or ``(P, N, H)`` if only the answers' output is needed.

        In a causal model the latter asks for sequences that end at their answers.
        """
        if intervention is None:
            return self.attend(self.project(hidden, pack, answers_only=answers_only), pack, {})
        entered = intervention.enter(hidden, pack)
        projected = self.project(entered, pack, answers_only=answers_only)
        return self.attend(projected, pack, intervention.factors)

    def project(self, hidden: Tensor, pack: Pack, *, answers_only: bool = False) -> Projected:
        """The frozen maps q, k and v, which all candidates with this input share."""
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
        """Add the factors, and do all the rest of the layer."""
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
        """Group by group, so that no padding is attended to: ``(P, M or N, H)``."""
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
        """Who may attend to whom where padding was kept: ``(P n, 1, T or 1, T)``, bool."""
        assert group.keys is not None
        mask = group.keys[:, None, None, :]
        if self._causal and not answers_only:
            length = group.keys.shape[1]
            mask = mask & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        return mask.repeat(population, 1, 1, 1)


def _adapted(output: Tensor, x: Tensor, factors: LoraFactors | None) -> Tensor:
    return output if factors is None else factors.added(output, x)
