"""A mixture of given LoRA adapters, whose weights are the search vector.

LoraHub (Huang et al. 2023, arXiv 2307.13269) mixes A and B each: ``A = sum_i w_i A_i`` and
``B = sum_i w_i B_i``, so their product is quadratic in w, with a term for every pair of adapters.
Beside it stands the mixture of their updates, ``sum_i w_i A_i B_i``, which is linear in w.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Encoder
from dfolora.errors import UserError
from dfolora.model import (
    Architecture,
    Backbone,
    LayerLora,
    LoraFactors,
    check_adapter,
    load_adapter,
    load_whole_adapter,
)
from dfolora.search.subspace.joint import JointSubspace
from dfolora.validation import choice, texts

Form = Literal["factors", "products"]
Mix = Callable[[Tensor], LoraFactors]
"""From the weights of P candidates, ``(P, d)``, to their factors of one map."""


@dataclass(frozen=True, kw_only=True)
class ComposedSubspaceSpec:
    """The mixtures of some adapters: one block, of a number for each of them."""

    adapters: Sequence[str]
    """Folders as PEFT writes them, of LoRA on attention maps of this model. What one does not adapt
    it adds nothing to."""
    form: Form = "factors"
    """What is mixed. factors: A and B each, as in LoraHub, so all are of one rank; products: their
    updates A B, the sum of the ranks being the mixture's. PEFT's scaling goes into B_i, so weight 1
    alone is the adapter itself; LoraHub scales the mixture, by the first adapter's, which is the
    same where all have one scaling."""

    @property
    def even(self) -> bool:
        """Whether A and B are both mixed: the signs of -w cancel in their product."""
        return self.form == "factors"

    def blocks(self, _architecture: Architecture) -> int:
        """One: all numbers are searched at once."""
        return 1

    def size(self, _architecture: Architecture) -> int:
        """The number of adapters."""
        return len(self.adapters)

    def encoder(self, plain: Encoder) -> Encoder:
        """The plain prompt."""
        return plain

    def check(self, architecture: Architecture) -> None:
        """Raise UserError, before anything is loaded, unless the model can have every adapter."""
        choice(self.form, "method.subspace.form", get_args(Form))
        texts(self.adapters, "method.subspace.adapters")
        first: dict[str, tuple[str, int]] = {}
        for folder in self.adapters:
            for path, rank in check_adapter(Path(folder), architecture).items():
                other, known = first.setdefault(path, (folder, rank))
                if self.form == "factors" and rank != known:
                    raise UserError(
                        f"{other} has rank {known} and {folder} has rank {rank} for {path}: "
                        f"method.subspace.form=factors adds up their A and B, which must be of one "
                        f"rank. Leave one out, or take method.subspace.form=products."
                    )

    def build(
        self, backbone: Backbone, _input_ids: Tensor, _attention_mask: Tensor, _seed: int
    ) -> JointSubspace:
        """Load the adapters; the train set plays no part in it."""
        self.check(backbone.architecture)
        load, mixed = {
            "factors": (load_whole_adapter, _factors),
            "products": (load_adapter, _products),
        }[self.form]
        parts: dict[int, dict[str, dict[int, LoraFactors]]] = {}
        for index, folder in enumerate(self.adapters):
            loaded = load(Path(folder), backbone)
            if not any(f.up.any() for lora in loaded.values() for f in lora.factors.values()):
                raise UserError(
                    f"The adapter {folder} changes nothing, for all its B are 0, as before "
                    f"training; leave it out of method.subspace.adapters."
                )
            for layer, lora in loaded.items():
                for name, factors in lora.factors.items():
                    parts.setdefault(layer, {}).setdefault(name, {})[index] = factors
        mixes = {
            layer: {name: mixed(owned) for name, owned in own.items()}
            for layer, own in sorted(parts.items())
        }

        def make(candidates: NDArray[np.float64]) -> dict[int, LayerLora]:
            weights = torch.from_numpy(candidates).float().to(backbone.device)
            return {
                layer: LayerLora(
                    layer=layer, factors={name: mix(weights) for name, mix in own.items()}
                )
                for layer, own in mixes.items()
            }

        one = make(np.ones((1, len(self.adapters)))).values()
        return JointSubspace(make, sum(lora.numbers for lora in one), backbone)


def _factors(parts: Mapping[int, LoraFactors]) -> Mix:
    """A and B of one map are sums of those of the adapters that have it, given by their index."""
    indices = list(parts)
    downs = torch.cat([factors.down for factors in parts.values()])
    ups = torch.cat([factors.up for factors in parts.values()])

    def mix(weights: Tensor) -> LoraFactors:
        down, up = (torch.einsum("pi,iab->pab", weights[:, indices], each) for each in (downs, ups))
        return LoraFactors(down=down, up=up)

    return mix


def _products(parts: Mapping[int, LoraFactors]) -> Mix:
    """A and B of one map are the adapters' side by side, the rows of B weighted."""
    owners = [index for index, factors in parts.items() for _ in range(factors.up.shape[1])]
    down = torch.cat([factors.down for factors in parts.values()], dim=2)
    up = torch.cat([factors.up for factors in parts.values()], dim=1)
    return lambda weights: LoraFactors(
        down=down.expand(len(weights), -1, -1), up=weights[:, owners, None] * up
    )
