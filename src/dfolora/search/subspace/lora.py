"""The frozen random map from a search vector to one layer's LoRA factors.

A vector z of length d is cut evenly into one part for each A and each B of the adapted maps, and
each part goes through its own bias-free random matrix: ``A = reshape(z_A P_A)``,
``B = reshape(z_B P_B)`` (Jin, Liu, Tan 2024, Section 3). So z = 0 is the base model exactly, and
z and -z give the same model when all other layers are as they were, since every update is a
product A B. With A fixed, as in LoRA-FA (Zhang et al. 2023, arXiv 2308.03303), it is linear in z.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Encoder
from dfolora.errors import UserError
from dfolora.model import Architecture, Backbone, LayerLora, LoraFactors
from dfolora.resources import check_room
from dfolora.search.subspace.layer_loras import LayerLoras
from dfolora.search.subspace.maps import drawn, holder
from dfolora.search.subspace.statistics import Statistics, layer_stds
from dfolora.seeding import stream
from dfolora.validation import choice, positive, whole

BProjection = Literal["hidden_std", "linear_default"]
Searched = Literal["both", "up"]


@dataclass(frozen=True, kw_only=True)
class LoraSubspaceSpec:
    """The LoRA search space; ``build`` draws the projections."""

    dim: int = 500
    """d, the length of one layer's search vector."""
    rank: int = 2
    """r of the LoRA factors."""
    targets: Sequence[str] = ("q", "k")
    """The adapted maps of every layer, a subset of q, k, v, o."""
    alpha: float = 1.0
    """Scale of the random maps: their standard deviation is alpha std_l / sqrt(d). The paper's
    Eq. 6 also divides by the optimizer's sigma, so that sigma cancels; here sigma stays the first
    step. What Eq. 6 has as (alpha, sigma) is this alpha = alpha / sigma with that sigma."""
    scaling: float = 1.0
    """Factor on every product A B."""
    b_projection: BProjection = "hidden_std"
    """Law of the B projections of layers >= 1: Eq. 6 as for A, or, as in the released code, the
    uniform default of ``nn.Linear``, on +-1 / sqrt(fan-in)."""
    statistics: Statistics = "real_tokens"
    """Which positions the hidden-state statistics see."""
    factors: Searched = "both"
    """What z is mapped to: A and B, or with up B alone, A being what one normal z would make it."""

    @property
    def even(self) -> bool:
        """Yes, unless A is fixed: it is the product A B that changes the model."""
        return self.factors == "both"

    @property
    def parts(self) -> int:
        """How many parts z is cut into."""
        return len(self.targets) * (2 if self.factors == "both" else 1)

    def blocks(self, architecture: Architecture) -> int:
        """One block per layer."""
        return architecture.layers

    def size(self, _architecture: Architecture) -> int:
        """``dim``."""
        return self.dim

    def encoder(self, plain: Encoder) -> Encoder:
        """The plain prompt."""
        return plain

    def check(self, architecture: Architecture) -> None:
        architecture.check_targets(self.targets)
        whole(self.dim, "dim", least=1)
        choice(self.factors, "subspace.factors", get_args(Searched))
        parts = self.parts
        if self.dim < parts or self.dim % parts:
            below = self.dim // parts * parts
            legal = [d for d in (below, below + parts) if d >= parts]
            each = "one A and one B" if self.factors == "both" else "one B"
            raise UserError(
                f"dim={self.dim} does not divide into {parts} equal parts ({each} for each of "
                f"{', '.join(self.targets)}); the nearest legal dim is "
                f"{' or '.join(map(str, legal))}."
            )
        architecture.check_rank(self.rank)
        positive(self.alpha, "subspace.alpha")
        positive(self.scaling, "scaling")
        choice(self.b_projection, "subspace.b_projection", get_args(BProjection))
        choice(self.statistics, "subspace.statistics", get_args(Statistics))
        check_room(
            4 * architecture.layers * self.dim * self.rank * architecture.width,
            f"The random maps of dim={self.dim} and rank={self.rank}",
            "take a smaller dim",
        )

    def build(
        self, backbone: Backbone, input_ids: Tensor, attention_mask: Tensor, seed: int
    ) -> "LoraSubspace":
        self.check(backbone.architecture)
        stds = layer_stds(backbone, input_ids, attention_mask, self.statistics)
        projections = drawn(partial(self._draw, backbone, seed), stds)
        hold = holder(backbone, sum(layer.nbytes for layer in projections))
        for layer, own in enumerate(projections):  # one after another, for they may be large
            projections[layer] = own.held(hold)
        return LoraSubspace(self, projections, device=backbone.device, dtype=backbone.dtype)

    def _draw(self, backbone: Backbone, seed: int, layer: int, std: float) -> "Projections":
        fan_in = self.dim // self.parts
        normal_std = self.alpha * std / np.sqrt(self.dim)
        uniform_b = layer > 0 and self.b_projection == "linear_default"
        down, up = [], []
        for name in self.targets:
            linear = backbone.layers[layer].maps[name]
            rng = stream(seed, f"projection/{layer}/{name}")
            rows, std_of_a = fan_in, normal_std
            if self.factors == "up":
                rows, std_of_a = 1, normal_std * np.sqrt(fan_in)
            down.append(_normal(rng, (rows, linear.place.d_in * self.rank), std_of_a))
            shape = (fan_in, self.rank * linear.place.d_out)
            up.append(
                _uniform(rng, shape, 1 / np.sqrt(fan_in))
                if uniform_b
                else _normal(rng, shape, normal_std)
            )
        return Projections(down=down, up=up)


@dataclass(frozen=True, kw_only=True)
class Projections:
    """One layer's random matrices, float32, one for each of the M adapted maps."""

    down: Sequence[Tensor]
    """``(d / 2M, d_in * r)`` each; where A is fixed, it is this, ``(1, d_in * r)``."""
    up: Sequence[Tensor]
    """``(d / 2M, r * d_out)`` each, or ``(d / M, r * d_out)``."""

    @property
    def stored(self) -> int:
        """Numbers in the layer's factors."""
        return sum(part.shape[-1] for part in (*self.down, *self.up))

    @property
    def nbytes(self) -> int:
        """Size of the matrices, in bytes."""
        return sum(part.nbytes for part in (*self.down, *self.up))

    def held(self, hold: Callable[[Tensor], Tensor]) -> "Projections":
        """The same, each matrix where ``hold`` puts it."""
        return Projections(down=[*map(hold, self.down)], up=[*map(hold, self.up)])


class LoraSubspace(LayerLoras):
    """Maps z to LoRA factors, one block per layer. Built by ``LoraSubspaceSpec.build``.

    Args:
        spec: What it was built from.
        projections: A layer each.
        device: Where the factors are wanted.
        dtype: What the incumbents' factors are rounded to: the model's.
    """

    def __init__(
        self,
        spec: LoraSubspaceSpec,
        projections: Sequence[Projections],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        stored = sum(layer.stored for layer in projections)
        super().__init__(len(projections), stored, dtype)
        self.spec = spec
        self._projections = projections
        self._device = device

    def intervention(self, layer: int, candidates: NDArray[np.float64]) -> LayerLora:
        """The LoRA factors of P candidates for one layer: ``(P, d) -> LayerLora``, float32."""
        spec, projections = self.spec, self._projections[layer]
        dtype = projections.down[0].dtype
        z = torch.from_numpy(candidates).to(self._device, dtype)
        # Parts are ordered A_1, B_1, A_2, B_2, ... over the targets, or B_1, B_2, ...
        parts = z.reshape(len(z), len(spec.targets), spec.parts // len(spec.targets), -1)
        factors = {}
        for index, name in enumerate(spec.targets):
            of_a = parts[:, index, 0] if spec.factors == "both" else z.new_ones(len(z), 1)
            of_b = parts[:, index, -1]
            down, up = (
                part @ matrices[index].to(self._device, non_blocking=True)
                for part, matrices in ((of_a, projections.down), (of_b, projections.up))
            )
            if spec.scaling != 1:
                up *= spec.scaling
            factors[name] = LoraFactors(
                down=down.reshape(len(z), -1, spec.rank), up=up.reshape(len(z), spec.rank, -1)
            )
        return LayerLora(layer=layer, factors=factors)


def _normal(rng: np.random.Generator, shape: tuple[int, int], std: float) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32) * np.float32(std))


def _uniform(rng: np.random.Generator, shape: tuple[int, int], bound: float) -> Tensor:
    unit = rng.random(shape, dtype=np.float32)
    return torch.from_numpy((2 * unit - 1) * np.float32(bound))
