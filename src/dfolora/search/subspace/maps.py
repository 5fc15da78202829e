"""Random maps of a subspace: drawn side by side, and held where they are used."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from dfolora.model import Backbone

Map = TypeVar("Map")
SHARE_OF_FREE = 0.1
"""The largest share of a GPU's free memory that maps take; the rest is for populations."""


def drawn(draw: Callable[[int, float], Map], stds: Iterable[float]) -> list[Map]:
    """The maps of every block, in order; each has a random stream of its own.

    Args:
        draw: ``(block, std)`` to its map; numpy draws without the interpreter's lock.
        stds: A block each.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(lambda numbered: draw(*numbered), enumerate(stds)))


def holder(backbone: Backbone, nbytes: int) -> Callable[[Tensor], Tensor]:
    """What puts maps where they are best held for a model.

    On a GPU that is its own memory, if all of them are a small part of what is free there; else
    pinned memory, from which those of one block are copied when they are used.

    Args:
        backbone: The model.
        nbytes: Of all maps.
    """
    device = backbone.device
    if device.type != "cuda":
        return lambda tensor: tensor
    if backbone.limits.memory is None and nbytes <= SHARE_OF_FREE * backbone.free_bytes:
        return lambda tensor: tensor.to(device)
    return lambda tensor: tensor.pin_memory()
