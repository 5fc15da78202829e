"""One turn of a search, as it ended.

Letters: P candidates, L blocks, d search dimension.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One turn of one block, as it ended."""

    block: int
    calls: int
    """Calls spent so far, this turn's included; whole ones, one that is begun counted."""
    candidates: Array
    """The candidates of this turn, in order: ``(P, d)``."""
    losses: Array
    """Their losses, inf for NaN: ``(P,)``."""
    solution: Array
    """The incumbents of all blocks after this turn: ``(L, d)``."""
    loss: float
    """The loss of ``solution``; nan under a rule that never measures it."""
    step_size: float
    """The optimizer's sigma or amplitude as the turn began; nan where it has none."""
    last: bool
    """Whether this is the last turn."""
