"""A block that is all there is: one vector, of which the LoRA factors of all layers are made."""

from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfolora.model import Backbone, LayerLora, save_adapter
from dfolora.search.subspace.subspace import Incumbents

Array = NDArray[np.float64]
Make = Callable[[Array], dict[int, LayerLora]]
"""From P candidates, ``(P, d)``, to their factors by layer, float32."""


class JointSubspace:
    """One block that changes several layers.

    Args:
        make: The map.
        stored: Numbers in a candidate's factors.
        backbone: The model: to its type the incumbents' factors are rounded.
        empty_at_zero: Whether z = 0 is the model without any factors.
        names: Of the numbers of z, where each says something by itself.
    """

    def __init__(
        self,
        make: Make,
        stored: int,
        backbone: Backbone,
        *,
        empty_at_zero: bool = True,
        names: Sequence[str] = (),
    ) -> None:
        self.blocks = 1
        self.stored = stored
        self._make = make
        self._names = names
        dtype = backbone.dtype
        self._incumbents = Incumbents(
            lambda _block, z: {layer: lora.to(dtype) for layer, lora in make(z).items()},
            empty_at_zero=empty_at_zero,
        )

    def interventions(self, _block: int, candidates: Array) -> dict[int, LayerLora]:
        """Those of all layers that z changes."""
        return self._make(candidates)

    def incumbents(self, solution: Array, *, without: Container[int] = ()) -> dict[int, LayerLora]:
        """The factors are rounded to the model's type."""
        return self._incumbents(solution, without).get(0, {})

    def found(self, solution: Array) -> Mapping[str, float]:
        """The numbers of z that have names."""
        return dict(zip(self._names, solution[0].tolist(), strict=False))

    def save(self, folder: Path, backbone: Backbone, solution: Array) -> None:
        """Write a PEFT adapter folder."""
        save_adapter(folder, backbone, self._make(solution).values())
