"""The frozen random map from a search vector to soft prompts: BBT's and BBTv2's.

``p = reshape(z A)`` is added to what enters a layer at the positions of filler words that stand
before the task's prompt: at the input alone (BBT: Sun et al., *Black-Box Tuning for Language-Model-
as-a-Service*, 2022) or at every layer (BBTv2: Sun et al., *BBTv2: Towards a Gradient-Free Future
with Large Language Models*, 2022).
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfolora.data import Encoder
from dfolora.errors import UserError
from dfolora.model import Architecture, Backbone, SoftPrompt
from dfolora.resources import check_room
from dfolora.search.subspace.maps import drawn, holder
from dfolora.search.subspace.statistics import layer_stds
from dfolora.search.subspace.subspace import Incumbents
from dfolora.seeding import stream
from dfolora.validation import flag, positive, whole

FILE = "soft_prompts.safetensors"


@dataclass(frozen=True, kw_only=True)
class PromptSubspaceSpec:
    """The search space of soft prompts; ``build`` draws the projections."""

    dim: int = 500
    """d, the length of one block's search vector."""
    positions: int = 50
    """n, the number of filler words before the prompt, to which vectors are added."""
    every_layer: bool = True
    """Whether there is one block per layer (BBTv2), or one at the input (BBT)."""
    alpha: float = 1.0
    """Scale of the random maps: their standard deviation is alpha std_l / sqrt(d). A published pair
    (alpha, sigma) of BBTv2, which divides by sigma too, is alpha / sigma here."""

    @property
    def even(self) -> bool:
        """No: the vectors are linear in z."""
        return False

    def blocks(self, architecture: Architecture) -> int:
        return architecture.layers if self.every_layer else 1

    def size(self, _architecture: Architecture) -> int:
        """``dim``."""
        return self.dim

    def check(self, architecture: Architecture) -> None:
        whole(self.dim, "subspace.dim", least=1)
        whole(self.positions, "prompt_tokens", least=1)
        flag(self.every_layer, "subspace.every_layer")
        positive(self.alpha, "subspace.alpha")
        if self.positions >= architecture.max_length:
            raise UserError(
                f"{self.positions} prompt vectors leave no room in a model of at most "
                f"{architecture.max_length} tokens; choose fewer (prompt_tokens)."
            )
        check_room(
            4 * self.blocks(architecture) * self.dim * self.positions * architecture.width,
            f"The random maps of subspace.dim={self.dim}",
            "take a smaller dim",
        )

    def encoder(self, plain: Encoder) -> Encoder:
        """The prompt with filler words before it."""
        encoder = replace(plain, prompt=plain.prompt.prefixed(), fillers=self.positions)
        # Decoded and encoded again, as the released code does, the words may be fewer tokens.
        if (tokens := encoder.shortest()) <= self.positions:
            raise UserError(
                f"With its filler words the prompt is {tokens} tokens for "
                f"{plain.tokenizer.name_or_path}, too few for {self.positions} vectors; choose "
                f"another pattern or fewer of them (prompt_tokens)."
            )
        return encoder

    def build(
        self, backbone: Backbone, input_ids: Tensor, attention_mask: Tensor, seed: int
    ) -> "PromptSubspace":
        self.check(backbone.architecture)
        stds = layer_stds(backbone, input_ids, attention_mask, "real_tokens")
        blocks = self.blocks(backbone.architecture)
        projections = drawn(partial(self._draw, backbone, seed), islice(stds, blocks))
        hold = holder(backbone, blocks * projections[0].nbytes)
        for block, own in enumerate(projections):  # one after another, for they may be large
            projections[block] = hold(own)
        start = _start(backbone, first_token=int(input_ids[0, 0]))
        return PromptSubspace(self, projections, backbone, start)

    def _draw(self, backbone: Backbone, seed: int, layer: int, std: float) -> Tensor:
        shape = self.dim, self.positions * backbone.architecture.width
        scale = np.float32(self.alpha * std / sqrt(self.dim))
        rng = stream(seed, f"projection/{layer}/prompt")
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32) * scale)


class PromptSubspace:
    """Maps z to soft prompts. Built by ``PromptSubspaceSpec.build``.

    Args:
        spec: What it was built from.
        projections: A block each, ``(d, n H)``, float32.
        backbone: The model: where the vectors are wanted.
        start: The first of their positions.
    """

    def __init__(
        self,
        spec: PromptSubspaceSpec,
        projections: Sequence[Tensor],
        backbone: Backbone,
        start: int,
    ) -> None:
        architecture = backbone.architecture
        self.blocks = len(projections)
        self.stored = self.blocks * spec.positions * architecture.width
        self._spec = spec
        self._projections = projections
        self._device = backbone.device
        self._start = start
        self._incumbents = Incumbents(self.intervention)

    def intervention(self, block: int, candidates: NDArray[np.float64]) -> SoftPrompt:
        """Float32 vectors of P candidates."""
        projection = self._projections[block].to(self._device, non_blocking=True)
        z = torch.from_numpy(candidates).to(projection)
        vectors = (z @ projection).view(len(z), self._spec.positions, -1)
        return SoftPrompt(layer=block, start=self._start, vectors=vectors)

    def interventions(self, block: int, candidates: NDArray[np.float64]) -> dict[int, SoftPrompt]:
        """Those of one layer."""
        return {block: self.intervention(block, candidates)}

    def incumbents(
        self, solution: NDArray[np.float64], *, without: Container[int] = ()
    ) -> dict[int, SoftPrompt]:
        return self._incumbents(solution, without)

    def found(self, _solution: NDArray[np.float64]) -> Mapping[str, float]:
        """None of them."""
        return {}

    def save(self, folder: Path, _backbone: Backbone, solution: NDArray[np.float64]) -> None:
        """Write ``soft_prompts.safetensors``: vectors ``(n, H)`` of every layer, zeros included.

        Its metadata have the ``start``, the position of the first vector.
        """
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"start": str(self._start)}
        save_file(dict(self._named(solution)), folder / FILE, metadata=metadata)

    def _named(self, solution: NDArray[np.float64]) -> Iterator[tuple[str, Tensor]]:
        for block, z in enumerate(solution):
            yield f"layer.{block}", self.intervention(block, z[None]).vectors[0].cpu().contiguous()


def load_soft_prompts(folder: Path, backbone: Backbone) -> dict[int, SoftPrompt]:
    """The soft prompts by layer that ``PromptSubspace.save`` wrote for this model."""
    tensors = load_file(folder / FILE)
    with safe_open(folder / FILE, "pt") as file:
        written = (file.metadata() or {}).get("start")
    start = _start(backbone) if written is None else int(written)  # older files lack it
    return {
        layer: SoftPrompt(
            layer=layer, start=start, vectors=tensors[f"layer.{layer}"][None].to(backbone.device)
        )
        for layer in range(len(tensors))
    }


def _start(backbone: Backbone, first_token: int | None = None) -> int:
    """The first position of the vectors: after the token that begins a sequence, where one does."""
    begins = first_token is not None and first_token == backbone.begins_with
    return 1 if begins or backbone.architecture.family.kind == "masked" else 0
