"""LoRA factors of every layer: what turns a map from z to them into a subspace."""

from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dfolora.model import Backbone, LayerLora, save_adapter
from dfolora.search.subspace.subspace import Incumbents

Array = NDArray[np.float64]


class LayerLoras(ABC):
    """A subspace of LoRA factors, each layer's of its block's vector alone; ``intervention`` maps.

    Args:
        layers: The number of layers.
        stored: Numbers in a solution's factors.
        dtype: What the incumbents' factors are rounded to: the model's.
        blocks: L, the vectors that the layers share, consecutive ones and as evenly as can be;
            None: one each.
    """

    def __init__(
        self, layers: int, stored: int, dtype: torch.dtype, *, blocks: int | None = None
    ) -> None:
        self.blocks = layers if blocks is None else blocks
        self.stored = stored
        self._layers = layers
        self._incumbents = Incumbents(
            lambda block, z: {
                layer: lora.to(dtype) for layer, lora in self.interventions(block, z).items()
            }
        )

    @abstractmethod
    def intervention(self, layer: int, candidates: Array) -> LayerLora:
        """The LoRA factors of P candidates for one layer: ``(P, d) -> LayerLora``, float32."""

    def interventions(self, block: int, candidates: Array) -> dict[int, LayerLora]:
        """Those of the block's layers."""
        first, end = (number * self._layers // self.blocks for number in (block, block + 1))
        return {layer: self.intervention(layer, candidates) for layer in range(first, end)}

    def incumbents(self, solution: Array, *, without: Container[int] = ()) -> dict[int, LayerLora]:
        """The factors are rounded to the model's type."""
        made = self._incumbents(solution, without).values()
        return {layer: lora for own in made for layer, lora in own.items()}

    def found(self, _solution: Array) -> Mapping[str, float]:
        """None of them."""
        return {}

    def save(self, folder: Path, backbone: Backbone, solution: Array) -> None:
        """Write a PEFT adapter folder."""
        made = (self.interventions(block, z[None]) for block, z in enumerate(solution))
        save_adapter(folder, backbone, [lora for own in made for lora in own.values()])
