"""Minibatches of train rows, for searches whose candidates see some rows a turn."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def minibatches(rows: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Row numbers of one minibatch after another, ``(size,)`` each, without end.

    Each epoch has its own order, and no row twice; what is left over at its end is not used.

    Args:
        rows: Of the train set.
        size: Of a minibatch, at most ``rows``.
        rng: The minibatches' own stream.
    """
    while True:
        order = rng.permutation(rows)
        yield from np.split(order[: rows // size * size], rows // size)
