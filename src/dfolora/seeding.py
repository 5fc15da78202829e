"""Random streams: one seed per run, one independent stream per purpose."""

from zlib import crc32

import numpy as np


def stream(seed: int, purpose: str) -> np.random.Generator:
    """A generator for one purpose; adding a purpose does not change the draws of the others.

    Args:
        seed: The run's seed, 0 or more.
        purpose: What the numbers are for, such as ``"split"`` or ``"search/3"``.
    """
    return np.random.default_rng([seed, crc32(purpose.encode())])
