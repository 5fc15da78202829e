"""A given LoRA adapter with a gain for each layer, which are the search vector.

Flexora (2024, arXiv 2408.10774) trains a weight for each layer's LoRA, and DiZO (2025) searches a
factor on how far each layer has moved; here both are one block of L numbers.
"""

from dataclasses import dataclass
from pathlib import Path

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
)
from dfolora.search.subspace.joint import JointSubspace
from dfolora.validation import text


@dataclass(frozen=True, kw_only=True)
class GainSubspaceSpec:
    """The gains of an adapter's layers: one block of L numbers g.

    Layer l has (1 + g_l) times its update, so a search starts from the adapter as it is. Gains of
    layers that it does not adapt change nothing.
    """

    adapter: str
    """A folder as PEFT writes it, of LoRA on attention maps of this model."""

    @property
    def even(self) -> bool:
        """No: updates are linear in g."""
        return False

    def blocks(self, _architecture: Architecture) -> int:
        """One: all numbers are searched at once."""
        return 1

    def size(self, architecture: Architecture) -> int:
        """L, the number of layers."""
        return architecture.layers

    def encoder(self, plain: Encoder) -> Encoder:
        """The plain prompt."""
        return plain

    def check(self, architecture: Architecture) -> None:
        """Raise UserError, before anything is loaded, unless the model can have the adapter."""
        check_adapter(Path(text(self.adapter, "method.subspace.adapter")), architecture)

    def build(
        self, backbone: Backbone, _input_ids: Tensor, _attention_mask: Tensor, _seed: int
    ) -> JointSubspace:
        """Load the adapter; the train set plays no part in it."""
        self.check(backbone.architecture)
        given = load_adapter(Path(self.adapter), backbone)
        if not given:
            raise UserError(
                f"The adapter {self.adapter} changes nothing, for all its B are 0, as before "
                f"training; give another one as method.subspace.adapter."
            )

        def make(candidates: NDArray[np.float64]) -> dict[int, LayerLora]:
            gains = torch.from_numpy(1 + candidates).float().to(backbone.device)
            return {
                layer: LayerLora(
                    layer=layer,
                    factors={
                        name: LoraFactors(
                            down=factors.down.expand(len(gains), -1, -1),
                            up=gains[:, layer, None, None] * factors.up,
                        )
                        for name, factors in lora.factors.items()
                    },
                )
                for layer, lora in given.items()
            }

        stored = sum(lora.numbers for lora in given.values())
        names = [f"gain/{layer}" for layer in range(backbone.architecture.layers)]
        return JointSubspace(make, stored, backbone, empty_at_zero=False, names=names)
