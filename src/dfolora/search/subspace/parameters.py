"""LoRA's own parameters as the search space: no map, every number of A and B is searched.

The setting of MeZO with LoRA (Malladi et al. 2023, arXiv 2305.17333): A begins as PEFT
initialises it and B at 0, so z = 0 is the base model exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Encoder
from dfolora.model import Architecture, Backbone, LayerLora, LoraFactors
from dfolora.resources import check_room
from dfolora.search.subspace.layer_loras import LayerLoras
from dfolora.seeding import stream
from dfolora.validation import positive


@dataclass(frozen=True, kw_only=True)
class ParameterSubspaceSpec:
    """The space of LoRA's parameters; ``build`` draws where A begins."""

    rank: int = 2
    """r of the LoRA factors."""
    targets: Sequence[str] = ("q", "k")
    """The adapted maps of every layer, a subset of q, k, v, o."""
    scaling: float = 1.0
    """Factor on every product A B: PEFT's ``lora_alpha / r``."""

    @property
    def even(self) -> bool:
        """No, for A begins elsewhere than at 0."""
        return False

    def blocks(self, architecture: Architecture) -> int:
        """One block per layer."""
        return architecture.layers

    def size(self, architecture: Architecture) -> int:
        """The numbers in a layer's A and B."""
        places = [architecture.maps[name] for name in self.targets]
        return self.rank * sum(place.d_in + place.d_out for place in places)

    def encoder(self, plain: Encoder) -> Encoder:
        """The plain prompt."""
        return plain

    def check(self, architecture: Architecture) -> None:
        architecture.check_targets(self.targets)
        architecture.check_rank(self.rank)
        positive(self.scaling, "scaling")
        check_room(
            8 * architecture.layers * self.size(architecture),
            f"A search vector of LoRA's parameters at rank={self.rank}",
            "take a smaller rank",
        )

    def build(
        self, backbone: Backbone, input_ids: Tensor, attention_mask: Tensor, seed: int
    ) -> "ParameterSubspace":
        """Draw where A begins; the train set plays no part in it."""
        self.check(backbone.architecture)
        starts = [
            [self._start(backbone, seed, layer, name) for name in self.targets]
            for layer in range(len(backbone.layers))
        ]
        return ParameterSubspace(self, starts, backbone)

    def _start(self, backbone: Backbone, seed: int, layer: int, name: str) -> Tensor:
        """A at z = 0, ``(d_in, r)``, float32.

        Uniform on +-1 / sqrt(d_in): Kaiming's law at the slope of sqrt(5) that PEFT gives it.
        """
        d_in = backbone.architecture.maps[name].d_in
        rng = stream(seed, f"parameters/{layer}/{name}")
        return torch.from_numpy(rng.uniform(-1, 1, (d_in, self.rank)) / sqrt(d_in)).float()


class ParameterSubspace(LayerLoras):
    """Maps z to LoRA factors A_0 + z_A and z_B. Built by ``ParameterSubspaceSpec.build``.

    Args:
        spec: What it was built from.
        starts: A_0 of each of a layer's maps, ``(d_in, r)``, float32.
        backbone: The model: where the factors are wanted, and what incumbents' are rounded to.
    """

    def __init__(
        self,
        spec: ParameterSubspaceSpec,
        starts: Sequence[Sequence[Tensor]],
        backbone: Backbone,
    ) -> None:
        stored = len(starts) * spec.size(backbone.architecture)
        super().__init__(len(starts), stored, backbone.dtype)
        self.spec = spec
        self._starts = [[start.to(backbone.device) for start in own] for own in starts]
        places = backbone.architecture.maps
        self._shapes = [
            shape
            for name in spec.targets
            for shape in ((places[name].d_in, spec.rank), (spec.rank, places[name].d_out))
        ]
        self._device = backbone.device

    def intervention(self, layer: int, candidates: NDArray[np.float64]) -> LayerLora:
        """The LoRA factors of P candidates for one layer: ``(P, d) -> LayerLora``, float32."""
        z = torch.from_numpy(candidates).float().to(self._device)
        # Parts are ordered A_1, B_1, A_2, B_2, ... over the targets.
        parts = [
            part.view(len(z), *shape)
            for part, shape in zip(
                z.split([*map(prod, self._shapes)], dim=1), self._shapes, strict=True
            )
        ]
        own = zip(self.spec.targets, self._starts[layer], parts[::2], parts[1::2], strict=True)
        factors = {
            name: LoraFactors(down=start + of_a, up=self.spec.scaling * of_b)
            for name, start, of_a, of_b in own
        }
        return LayerLora(layer=layer, factors=factors)
