"""Interventions: what a population of candidates changes at one layer of the frozen model."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dfolora.model.factors import LoraFactors
from dfolora.model.packing import Pack


class Intervention(Protocol):
    """What P candidates change at one layer."""

    @property
    def layer(self) -> int:
        """Index of the layer."""
        ...

    @property
    def population(self) -> int:
        """P, the number of candidates."""
        ...

    @property
    def factors(self) -> Mapping[str, LoraFactors]:
        """Low-rank updates of the layer's attention maps, by map name; may be empty."""
        ...

    def enter(self, hidden: Tensor, pack: Pack) -> Tensor:
        """The layer's input in place of ``hidden``: ``(1 or P, M, H) -> (1 or P, M, H)``.

        Returns ``hidden`` itself if nothing changes, and never writes to it.
        """
        ...

    def part(self, candidates: slice) -> "Intervention":
        """The intervention of some of the candidates."""
        ...

    @property
    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        ...

    @property
    def kind(self) -> Hashable:
        """Equal for interventions that differ in the values of their tensors alone."""
        ...

    def cloned(self) -> "Intervention":
        """The same, of tensors of its own."""
        ...


@dataclass(frozen=True, kw_only=True)
class LayerLora:
    """The LoRA factors of one layer's maps q, k, v, o."""

    layer: int
    factors: Mapping[str, LoraFactors]

    @property
    def population(self) -> int:
        """Candidates, P."""
        return len(next(iter(self.factors.values())).down)

    @property
    def numbers(self) -> int:
        """Those of all candidates' factors."""
        return sum(each.down.numel() + each.up.numel() for each in self.factors.values())

    def enter(self, hidden: Tensor, _pack: Pack) -> Tensor:
        """The same."""
        return hidden

    def part(self, candidates: slice) -> "LayerLora":
        """That of some of the candidates."""
        parts = {name: factors.part(candidates) for name, factors in self.factors.items()}
        return LayerLora(layer=self.layer, factors=parts)

    @property
    def tensors(self) -> list[Tensor]:
        """All maps' A and B."""
        return [part for own in self.factors.values() for part in (own.down, own.up)]

    @property
    def kind(self) -> Hashable:
        """The adapted maps, and shapes and types of their factors."""
        return tuple(self.factors), _shapes(self.tensors)

    def cloned(self) -> "LayerLora":
        """The same, of tensors of its own."""
        cloned = {
            name: LoraFactors(down=own.down.clone(), up=own.up.clone())
            for name, own in self.factors.items()
        }
        return LayerLora(layer=self.layer, factors=cloned)

    def to(self, dtype: torch.dtype) -> "LayerLora":
        """The same, rounded to another type."""
        rounded = {name: factors.to(dtype) for name, factors in self.factors.items()}
        return LayerLora(layer=self.layer, factors=rounded)


@dataclass(frozen=True, kw_only=True)
class SoftPrompt:
    """Vectors added to what enters a layer at the first positions of every sequence.

    As in BBTv2 (Sun et al. 2022), whose prompts hold filler words there.
    """

    layer: int
    start: int
    """The first of these positions: 1 after RoBERTa's ``<s>``, 0 for GPT-2."""
    vectors: Tensor
    """``(P, n, H)``, for n positions."""

    @property
    def population(self) -> int:
        """Candidates, P."""
        return len(self.vectors)

    @property
    def factors(self) -> Mapping[str, LoraFactors]:
        """None: it changes no weight."""
        return {}

    def enter(self, hidden: Tensor, pack: Pack) -> Tensor:
        """With the vectors added."""
        positions = torch.arange(self.vectors.shape[1], device=hidden.device) + self.start
        changed = hidden.expand(max(len(hidden), self.population), -1, -1).clone()
        added = self.vectors.to(hidden.dtype).repeat(1, len(pack.starts), 1)
        changed[:, (pack.starts[:, None] + positions).flatten()] += added
        return changed

    def part(self, candidates: slice) -> "SoftPrompt":
        """That of some of the candidates."""
        return SoftPrompt(layer=self.layer, start=self.start, vectors=self.vectors[candidates])

    @property
    def tensors(self) -> list[Tensor]:
        """The vectors."""
        return [self.vectors]

    @property
    def kind(self) -> Hashable:
        """Where the vectors are added, their shape and type."""
        return self.start, _shapes(self.tensors)

    def cloned(self) -> "SoftPrompt":
        """The same, of vectors of its own."""
        return SoftPrompt(layer=self.layer, start=self.start, vectors=self.vectors.clone())


def _shapes(tensors: Sequence[Tensor]) -> Hashable:
    return tuple((tensor.shape, tensor.dtype) for tensor in tensors)
