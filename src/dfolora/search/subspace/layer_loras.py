"""LoRA factors of one layer a block: what turns a map from z to them into a subspace."""

from abc import ABC, abstractmethod
from collections.abc import Container
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dfolora.model import Backbone, LayerLora, save_adapter
from dfolora.search.subspace.subspace import Incumbents

Array = NDArray[np.float64]


class LayerLoras(ABC):
    """A subspace whose blocks are layers, each with LoRA factors of its own; ``intervention`` maps.

    Args:
        blocks: L, the number of layers.
        stored: Numbers in a solution's factors.
        dtype: What the incumbents' factors are rounded to: the model's.
    """

    def __init__(self, blocks: int, stored: int, dtype: torch.dtype) -> None:
        self.blocks = blocks
        self.stored = stored
        self._incumbents = Incumbents(lambda block, z: self.intervention(block, z).to(dtype))

    @abstractmethod
    def intervention(self, block: int, candidates: Array) -> LayerLora:
        """The LoRA factors of P candidates for one layer: ``(P, d) -> LayerLora``, float32."""

    def interventions(self, block: int, candidates: Array) -> dict[int, LayerLora]:
        """Those of one layer."""
        return {block: self.intervention(block, candidates)}

    def incumbents(self, solution: Array, *, without: Container[int] = ()) -> dict[int, LayerLora]:
        """The factors are rounded to the model's type."""
        return self._incumbents(solution, without)

    def save(self, folder: Path, backbone: Backbone, solution: Array) -> None:
        """Write a PEFT adapter folder."""
        layers = [self.intervention(block, z[None]) for block, z in enumerate(solution)]
        save_adapter(folder, backbone, layers)
