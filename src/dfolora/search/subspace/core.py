"""The core subspace: a small square matrix between two fixed factors, which is linear in z.

For each of the adapted maps ``W -> W + A R B``: A and B are fixed, R is ``(r, r)`` and made of the
search vector. LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604) has A and B from the weights'
singular vectors, TinyLoRA (2026, arXiv 2602.04118) makes R of a few numbers by fixed random
matrices, and EVA (Paischer et al. 2024, arXiv 2410.07170) has A from the layers' inputs. Here A
and B can come from what enters and leaves the map, whose spread then sets the scale of z.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Encoder
from dfolora.errors import UserError
from dfolora.model import Architecture, Backbone, LayerLora, LoraFactors
from dfolora.search.subspace.layer_loras import LayerLoras
from dfolora.search.subspace.statistics import MapMoments, map_moments
from dfolora.seeding import stream
from dfolora.validation import choice, flag, positive, whole

Basis = Literal["activation", "weight", "random"]

NO_SPREAD = 1e-6
"""A direction along which inputs spread less than this, as a share of the widest, is dropped."""


@dataclass(frozen=True, kw_only=True)
class CoreSubspaceSpec:
    """The core search space; ``build`` finds the factors around R."""

    rank: int = 2
    """r of R."""
    targets: Sequence[str] = ("q", "k")
    """The adapted maps of every layer, a subset of q, k, v, o."""
    basis: Basis = "activation"
    """Where A and B point. activation: along the principal directions of the map's inputs and
    outputs; weight: along the weight's leading singular vectors, A times their singular values;
    random: anywhere, orthonormal."""
    alpha: float = 0.3
    """Scale of B: with R of unit normal numbers a map's output changes by about alpha times its own
    spread, for each direction of the input."""
    whiten: bool = True
    """Whether each column of X A has variance 1, or they have it only on average, so that the
    columns of A keep their proportions."""
    diagonal: bool = False
    """Whether R is diagonal."""
    numbers: int | None = None
    """u, the numbers of a vector, of which fixed normal matrices make the R's of its layers
    (TinyLoRA); None for an R's entries themselves."""
    vectors: int | None = None
    """How many vectors z there are, which consecutive layers share as evenly as can be; None for
    one a layer. Layers that share one have R's of matrices of their own, or without ``numbers``
    the same R's."""

    @property
    def even(self) -> bool:
        """No: R is linear in z."""
        return False

    def blocks(self, architecture: Architecture) -> int:
        """One block per vector."""
        return architecture.layers if self.vectors is None else self.vectors

    def size(self, _architecture: Architecture) -> int:
        """The entries of R of all maps, or ``numbers``."""
        return self.entries if self.numbers is None else self.numbers

    @property
    def entries(self) -> int:
        """The free entries of a layer's R's."""
        return len(self.targets) * self.rank ** (1 if self.diagonal else 2)

    def encoder(self, plain: Encoder) -> Encoder:
        """The plain prompt."""
        return plain

    def check(self, architecture: Architecture) -> None:
        architecture.check_targets(self.targets)
        whole(self.rank, "rank", least=1)
        places = [architecture.maps[name] for name in self.targets]
        most = min(min(place.d_in, place.d_out) for place in places)
        if self.rank > most:
            raise UserError(f"rank={self.rank} must lie between 1 and {most}, a map's least width.")
        choice(self.basis, "subspace.basis", get_args(Basis))
        positive(self.alpha, "subspace.alpha")
        flag(self.whiten, "subspace.whiten")
        flag(self.diagonal, "subspace.diagonal")
        if self.vectors is not None and (
            whole(self.vectors, "subspace.vectors", least=1) > architecture.layers
        ):
            raise UserError(
                f"subspace.vectors={self.vectors} is more than the {architecture.layers} layers "
                f"that there are to share them; choose at most {architecture.layers}, or null for "
                f"one a layer."
            )
        if self.numbers is None:
            return
        whole(self.numbers, "subspace.numbers", least=1)
        blocks = self.blocks(architecture)
        tied = architecture.layers // blocks
        if self.numbers > (most := tied * self.entries):
            those = "a layer" if tied == 1 else f"{tied} layers, which share a vector,"
            raise UserError(
                f"subspace.numbers={self.numbers} is more than the {most} entries that the R's of "
                f"{those} have at rank={self.rank} with {', '.join(self.targets)}: the rest would "
                f"change nothing that the others cannot. Take {most} or fewer, or a larger rank"
                + (
                    ", or fewer subspace.vectors, which more layers then share."
                    if blocks > 1
                    else "."
                )
            )

    def build(
        self, backbone: Backbone, input_ids: Tensor, attention_mask: Tensor, seed: int
    ) -> "CoreSubspace":
        """Find the factors.

        Warns:
            RuntimeWarning: Inputs do not spread along some of the directions.
        """
        self.check(backbone.architecture)
        moments = map_moments(backbone, input_ids, attention_mask, self.targets)
        sides = [
            [self._sides(backbone, seed, layer, name, own[name]) for name in self.targets]
            for layer, own in enumerate(moments)
        ]
        columns = torch.cat([down.any(0) for layer in sides for down, _up in layer])
        if dropped := int((~columns).sum()):
            warnings.warn(
                f"The train set's tokens do not spread along {dropped} of the maps' "
                f"{len(columns)} directions, which are dropped: what z has there changes nothing. "
                f"Lower rank, or train on more rows.",
                RuntimeWarning,
                stacklevel=2,
            )
        return CoreSubspace(
            self,
            [[(a.to(backbone.device), b.to(backbone.device)) for a, b in own] for own in sides],
            mixings=[self._mixing(seed, layer) for layer in range(len(sides))],
            dtype=backbone.dtype,
            blocks=self.blocks(backbone.architecture),
        )

    def _sides(
        self, backbone: Backbone, seed: int, layer: int, name: str, moments: MapMoments
    ) -> tuple[Tensor, Tensor]:
        """A and B of one map, ``(d_in, r)`` and ``(r, d_out)``, float32."""
        inputs = moments.inputs.covariance
        spreads, outward = leading(moments.outputs.covariance, self.rank)
        if self.basis == "activation":
            down, up = leading(inputs, self.rank)[1], spreads[:, None] * outward.T
        elif self.basis == "weight":
            weight = backbone.layers[layer].maps[name].weight.cpu().double()
            right = leading(weight.T @ weight, self.rank)[1]
            down, up = weight @ right, right.T
        else:
            rng = stream(seed, f"core/{layer}/{name}")
            down, up = (
                signed(torch.linalg.qr(torch.from_numpy(rng.standard_normal((d, self.rank))))[0])
                for d in (len(inputs), len(outward))
            )
            up = up.T
        stds = (down * (inputs @ down)).sum(0).clamp(min=0).sqrt()  # of the columns of X A
        spread = (stds >= NO_SPREAD * stds.max()) & (stds > 0)
        scale = stds if self.whiten else stds[spread].square().mean().sqrt()
        down = torch.where(spread, down / scale, 0)
        # As large as the activation basis, whatever its directions.
        up = up * (self.alpha * spreads.norm() / up.norm())
        return down.float(), up.float()

    def _mixing(self, seed: int, layer: int) -> Tensor | None:
        """What makes a layer's R's of u numbers, ``(u, entries)``; None if they are the entries.

        Entries of variance 1 come of u unit normal numbers.
        """
        if self.numbers is None:
            return None
        rng = stream(seed, f"core/{layer}/mixing")
        normal = rng.standard_normal((self.numbers, self.entries)) / np.sqrt(self.numbers)
        return torch.from_numpy(normal).float()


def leading(gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading directions of a Gram matrix: of rows Z with ``gram = Z'Z``.

    Args:
        gram: ``(d, d)``, float64.
        rank: r.

    Returns:
        Z's singular values, ``(r,)``, and its right singular vectors, ``(d, r)``, largest first.
    """
    values, vectors = torch.linalg.eigh(gram)
    return values[-rank:].flip(0).clamp(min=0).sqrt(), signed(vectors[:, -rank:].flip(1))


def signed(vectors: Tensor) -> Tensor:
    """Columns with their entry of largest magnitude positive, for libraries differ in signs."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)


class CoreSubspace(LayerLoras):
    """Maps z to LoRA factors A R and B. Built by ``CoreSubspaceSpec.build``.

    Args:
        spec: What it was built from.
        sides: A and B of each of a layer's maps, ``(d_in, r)`` and ``(r, d_out)``, float32.
        mixings: A layer each: from z to the entries of its R's, ``(d, entries)``; None if z is
            these.
        dtype: What the incumbents' factors are rounded to: the model's.
        blocks: The vectors that the layers share; None: one each.
    """

    def __init__(
        self,
        spec: CoreSubspaceSpec,
        sides: Sequence[Sequence[tuple[Tensor, Tensor]]],
        *,
        mixings: Sequence[Tensor | None],
        dtype: torch.dtype,
        blocks: int | None = None,
    ) -> None:
        stored = sum(down.numel() + up.numel() for own in sides for down, up in own)
        super().__init__(len(sides), stored, dtype, blocks=blocks)
        self.spec = spec
        self._sides = sides
        self._mixings = mixings

    def intervention(self, layer: int, candidates: NDArray[np.float64]) -> LayerLora:
        """The LoRA factors of P candidates for one layer: ``(P, d) -> LayerLora``, float32."""
        factors = {
            name: LoraFactors(down=down @ core, up=up.expand(len(core), -1, -1))
            for name, (down, up), core in zip(
                self.spec.targets, self._sides[layer], self._cores(layer, candidates), strict=True
            )
        }
        return LayerLora(layer=layer, factors=factors)

    def _cores(self, layer: int, candidates: NDArray[np.float64]) -> Iterator[Tensor]:
        """R of each map, ``(P, r, r)``."""
        device = self._sides[layer][0][0].device
        entries, mixing = torch.from_numpy(candidates).float(), self._mixings[layer]
        if mixing is not None:
            entries = entries @ mixing
        for core in entries.to(device).chunk(len(self.spec.targets), dim=1):
            rank = self.spec.rank
            yield core.diag_embed() if self.spec.diagonal else core.view(-1, rank, rank)
