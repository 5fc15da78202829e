"""One vector shared by the LoRA factors of all layers (Uni-LoRA: Li et al. 2025, arXiv 2506.00799).

Every entry of every A and B is one of d numbers, which of them being drawn once, divided by the
square root of how many entries have that number. So the map from z to all entries is an isometry,
up to a scale that is the same for all entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Encoder
from dfolora.errors import UserError
from dfolora.model import Architecture, Backbone, LayerLora, LoraFactors
from dfolora.resources import check_room
from dfolora.search.subspace.joint import JointSubspace
from dfolora.seeding import stream
from dfolora.validation import positive, whole


@dataclass(frozen=True, kw_only=True)
class UniLoraSubspaceSpec:
    """The search space of one shared vector; ``build`` draws which entry has which number."""

    dim: int = 500
    """d, the length of the vector, which all layers share."""
    rank: int = 2
    """r of the LoRA factors."""
    targets: Sequence[str] = ("q", "k")
    """The adapted maps of every layer, a subset of q, k, v, o."""
    alpha: float = 0.5
    """Scale of A and B: with z of unit normal numbers and a map's input of unit normal ones, its
    output changes by about alpha^2, whatever the model's width, r and d."""

    @property
    def even(self) -> bool:
        """Yes: it is the product A B that changes the model."""
        return True

    def blocks(self, _architecture: Architecture) -> int:
        """One: all numbers are searched at once."""
        return 1

    def size(self, _architecture: Architecture) -> int:
        """``dim``."""
        return self.dim

    def entries(self, architecture: Architecture) -> int:
        """D, the entries of A and B of all layers."""
        return architecture.layers * sum(map(prod, self.shapes(architecture)))

    def shapes(self, architecture: Architecture) -> list[tuple[int, int]]:
        """Of a layer's factors: A_1, B_1, A_2, B_2, ... over the targets."""
        places = [architecture.maps[name] for name in self.targets]
        return [
            shape
            for place in places
            for shape in ((place.d_in, self.rank), (self.rank, place.d_out))
        ]

    def encoder(self, plain: Encoder) -> Encoder:
        """The plain prompt."""
        return plain

    def check(self, architecture: Architecture) -> None:
        architecture.check_targets(self.targets)
        whole(self.dim, "dim", least=1)
        architecture.check_rank(self.rank)
        positive(self.alpha, "subspace.alpha")
        entries = self.entries(architecture)
        if self.dim > entries:
            raise UserError(
                f"dim={self.dim} is more than the {entries} entries that A and B of all layers "
                f"have at rank={self.rank} with {', '.join(self.targets)}, each of which takes one "
                f"number. Take a smaller dim or a larger rank."
            )
        check_room(8 * entries, f"The entries at rank={self.rank}", "take a smaller rank")

    def build(
        self, backbone: Backbone, _input_ids: Tensor, _attention_mask: Tensor, seed: int
    ) -> JointSubspace:
        """Draw which entry has which number; the train set plays no part in it."""
        architecture = backbone.architecture
        self.check(architecture)
        shapes, entries = self.shapes(architecture), self.entries(architecture)
        numbers = [
            stream(seed, f"uni_lora/{layer}").integers(self.dim, size=sum(map(prod, shapes)))
            for layer in range(architecture.layers)
        ]
        counts = np.bincount(np.concatenate(numbers), minlength=self.dim)
        # An isometry shares |z|^2, d on average, out among D entries. With this they have variance
        # s^2, and x A B has r d_in s^4 = alpha^4 for x of unit normal numbers.
        unit = self.alpha / (self.rank * architecture.width) ** 0.25
        scale = unit * np.sqrt(entries / self.dim) / np.sqrt(np.maximum(counts, 1))
        indices = [torch.from_numpy(own).to(backbone.device) for own in numbers]

        def make(candidates: NDArray[np.float64]) -> dict[int, LayerLora]:
            z = torch.from_numpy(candidates * scale).float().to(backbone.device)
            return {
                layer: self._layer(layer, z[:, own], shapes) for layer, own in enumerate(indices)
            }

        return JointSubspace(make, entries, backbone)

    def _layer(self, layer: int, entries: Tensor, shapes: Sequence[tuple[int, int]]) -> LayerLora:
        """One layer's factors of its entries, ``(P, D / L)``."""
        parts = [
            part.view(-1, *shape)
            for part, shape in zip(entries.split([*map(prod, shapes)], dim=1), shapes, strict=True)
        ]
        factors = {
            name: LoraFactors(down=down, up=up)
            for name, down, up in zip(self.targets, parts[::2], parts[1::2], strict=True)
        }
        return LayerLora(layer=layer, factors=factors)
