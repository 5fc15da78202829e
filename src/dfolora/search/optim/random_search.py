"""Random search: the baseline that learns nothing."""

from typing import final

import numpy as np
from numpy.typing import ArrayLike

from dfolora.search.optim.optimizer import (
    Ledger,
    Point,
    Population,
    Vector,
    require_positive,
    require_room,
)


@final
class RandomSearch:
    """Draws every candidate from N(0, sigma^2 I) and recommends the best it saw.

    Args:
        dim: Search dimension d.
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
        self._dim, self._population, self._sigma, self._rng = dim, population, sigma, rng
        self._ledger = Ledger()

    @property
    def population(self) -> int:
        """P."""
        return self._population

    @property
    def asks(self) -> int:
        """1."""
        return 1

    @property
    def step_size(self) -> float:
        """Sigma, which never changes."""
        return self._sigma

    @property
    def best(self) -> Point | None:
        """The lowest loss ever told."""
        return self._ledger.best

    @property
    def center(self) -> Vector:
        """``(d,)``: the best point told; 0 before one was."""
        return np.zeros(self._dim) if self.best is None else self.best.z.copy()

    def ask(self, incumbent: Point | None = None) -> Population:
        """Fresh candidates, ``(P, d)``; ``incumbent`` does not matter."""
        shape = (self._population, self._dim)
        return self._ledger.ask(lambda: self._sigma * self._rng.standard_normal(shape))

    def tell(self, losses: ArrayLike) -> None:
        """Remember the best of ``losses``, ``(P,)``."""
        self._ledger.tell(losses)
