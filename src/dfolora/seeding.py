"""One seed a run, one independent random stream a purpose."""

from zlib import crc32

import numpy as np


def stream(seed: int, purpose: str) -> np.random.Generator:
    """A private generator for ``purpose`` alone, so that a new consumer leaves the others' draws.

    Args:
        seed: The run's seed, 0 or more.
        purpose: What the numbers are for, such as ``"split"`` or ``"search/3"``.
    """
    return np.random.default_rng([seed, crc32(purpose.encode())])
