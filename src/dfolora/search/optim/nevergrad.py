"""Any optimizer registered in nevergrad, by name.

Rapin and Teytaud, "Nevergrad: A gradient-free optimization platform",
https://github.com/facebookresearch/nevergrad, 2018.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from dfolora.errors import UserError, explained
from dfolora.search.optim.optimizer import (
    Ledger,
    Point,
    Population,
    PrivateRandomness,
    Vector,
    require_positive,
    require_room,
)
from dfolora.validation import text


@final
class Nevergrad:
    """A nevergrad optimizer from 0, asked for whole populations, on a private random stream.

    nevergrad is imported when the first of these is built: its import takes seconds.

    Args:
        dim: Search dimension d.
        budget: Calls this optimizer may expect; nevergrad tunes some of its algorithms by it.
        rng: Private generator.
        name: A name in nevergrad's registry, such as "TBPSA" or "OnePlusOne".
        population: Candidates a generation, P; nevergrad is told that they run in parallel.
        sigma: Standard deviation of nevergrad's mutations, and its scale of the search space.

    Raises:
        UserError: nevergrad has no such optimizer, it works on one candidate at a time only, or it
            lacks a library.
    """

    def __init__(
        self,
        dim: int,
        budget: int,
        rng: np.random.Generator,
        *,
        name: str,
        population: int = 20,
        sigma: float = 1.0,
    ) -> None:
        import nevergrad as ng

        require_positive(dim=dim, budget=budget, population=population, sigma=sigma)
        require_room(population, dim)
        if text(name, "name") not in ng.optimizers.registry:
            near = get_close_matches(name, ng.optimizers.registry)
            raise UserError(
                f"nevergrad {ng.__version__} has no optimizer {name!r}"
                f"{'; did you mean ' + ', '.join(near) if near else ''}. "
                "sorted(nevergrad.optimizers.registry) lists all."
            )
        build = ng.optimizers.registry[name]
        if build.no_parallelization and population > 1:
            raise UserError(
                f"nevergrad's {name} takes one candidate at a time; got population {population}, "
                "set it to 1."
            )
        self._name, self._population = name, population
        self._warning = ng.errors.NevergradWarning
        self._ledger = Ledger()
        # It seeds itself from numpy's global generator, and some algorithms draw on from there.
        self._randomness = PrivateRandomness(rng)
        space = ng.p.Array(init=np.zeros(dim)).set_mutation(sigma=sigma)
        with self._inside():
            self._optimizer = build(space, budget=budget, num_workers=population)
        self._candidates: list[Any] = []
        # Only when they are asked do some miss a library that they need.
        self._first = self._drawn()
        self._center: Vector = np.zeros(dim)

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
        """Nan: nevergrad's algorithms share no such notion."""
        return np.nan

    @property
    def best(self) -> Point | None:
        """The lowest loss ever told."""
        return self._ledger.best

    @property
    def center(self) -> Vector:
        """``(d,)``: nevergrad's recommendation; 0 before anything was told."""
        return self._center.copy()

    def ask(self, incumbent: Point | None = None) -> Population:
        """The next P candidates, ``(P, d)``; ``incumbent`` does not matter."""
        return self._ledger.ask(self._sample)

    def tell(self, losses: ArrayLike) -> None:
        """Tell nevergrad ``losses``, ``(P,)``, one by one in the order asked."""
        _, told = self._ledger.tell(losses)
        with self._inside():
            for candidate, loss in zip(self._candidates, self._ledger.finite(told), strict=True):
                self._optimizer.tell(candidate, float(loss))
            # Now, not when read: a recommendation may draw, and looking must not change the run.
            self._center = np.array(self._optimizer.provide_recommendation().value)

    def _sample(self) -> Population:
        self._candidates, self._first = self._first or self._drawn(), []
        return np.array([candidate.value for candidate in self._candidates], dtype=np.float64)

    def _drawn(self) -> list[Any]:
        with self._inside():
            return [self._optimizer.ask() for _ in range(self._population)]

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Around every call of nevergrad: its draws are private, its advice is not ours to give."""
        with self._randomness.lent(), warnings.catch_warnings():
            warnings.simplefilter("ignore", self._warning)
            with explained(self._failed):
                yield

    def _failed(self, error: Exception) -> str:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return (
            f"nevergrad's {self._name} fails with population {self._population} ({reason}); "
            f"install what it lacks, or choose another name or population."
        )
