"""Random search: the baseline that learns nothing."""

from typing import final

import numpy as np

from dfolora.search.optim.optimizer import (
    Optimizer,
    Turn,
    Turns,
    require_positive,
    require_room,
)


@final
class RandomSearch(Optimizer):
    """Draws every candidate from N(0, sigma^2 I) and recommends the best one seen.

    Args:
        dim: Turns dimension d.
        budget: Ignored: the search has no horizon.
        rng: Private generator.
        population: Candidates a generation, P.
        sigma: Standard deviation of each coordinate.
    """

    def __init__(
        self,
        dim: int,
        budget: int,
        rng: np.random.Generator,
        *,
        population: int = 20,
        sigma: float = 1.0,
    ) -> None:
        require_positive(dim=dim, population=population, sigma=sigma)
        require_room(population, dim)
        super().__init__(_turns((population, dim), sigma, rng), population=population)


def _turns(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> Turns:
    center, lowest = np.zeros(shape[1]), np.inf
    while True:
        candidates = sigma * rng.standard_normal(shape)
        losses = yield Turn(candidates=candidates, center=center, step_size=sigma)
        if losses.min() < lowest:
            center, lowest = candidates[losses.argmin()], losses.min()
