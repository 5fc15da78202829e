"""Any optimizer registered in nevergrad, by name.

Rapin and Teytaud, "Nevergrad: A gradient-free optimization platform",
https://github.com/facebookresearch/nevergrad, 2018.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from difflib import get_close_matches
from functools import partial
from math import ceil
from typing import Any, final

import numpy as np

from dfolora.errors import UserError, explained, installed
from dfolora.search.optim.optimizer import (
    Optimizer,
    PrivateRandomness,
    Turn,
    Turns,
    finite,
    require_positive,
    require_room,
)
from dfolora.validation import text

LEAVING = re.compile("PSO|ParaPortfolio|MixDeterministicRL|AnisotropicAdaptiveDiscrete")
"""Names of those that ask for 1e16 and more in a space without bounds (nevergrad 1.0.12)."""
BOUND = 5.0
"""Bound of each coordinate for these, in units of sigma, where none is given."""


@final
class Nevergrad(Optimizer):
    """A nevergrad optimizer that starts at 0 and draws from a private random stream.

    nevergrad is imported when the first of these is built: its import takes seconds.

    Args:
        dim: Turns dimension d.
        budget: Calls this optimizer may expect; nevergrad tunes some of its algorithms by it.
        rng: Private generator.
        name: A name in nevergrad's registry, such as "TBPSA" or "OnePlusOne".
        population: Candidates a generation, P; nevergrad is told that they run in parallel.
        sigma: Standard deviation of nevergrad's mutations, and its scale of the search space.
        bound: Coordinates stay within +- bound, and nevergrad knows, which some of its algorithms
            go by; None for no bound, but for some (``LEAVING``).

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
        bound: float | None = None,
    ) -> None:
        # Its import draws from numpy's global generator.
        with installed("pipelines"), PrivateRandomness(np.random.default_rng(0)).lent():
            import nevergrad as ng

        require_positive(dim=dim, budget=budget, population=population, sigma=sigma)
        require_room(population, dim)
        if bound is None and LEAVING.search(text(name, "name")):
            bound = BOUND * sigma
        if bound is not None:
            require_positive(bound=bound)
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
        inside = partial(
            _inside,
            # It seeds itself from numpy's global generator, and some algorithms draw on from there.
            PrivateRandomness(rng),
            f"nevergrad's {name} fails with population {population}",
        )
        # Some fail when they are asked for more than they were told. The loop asks for whole
        # generations, shares a remainder of the budget out, and has the next one drawn ahead.
        asks = population * (ceil((budget + 1) / population) + 1)
        with inside():
            space = ng.p.Array(init=np.zeros(dim)).set_mutation(sigma=sigma)
            if bound is not None:
                space = space.set_bounds(-bound, bound)
            optimizer = build(space, budget=asks, num_workers=population)
        # Only when they are asked do some miss a library that they need.
        super().__init__(finite(_turns(optimizer, dim, population, inside)), population=population)


def _turns(
    optimizer: Any, dim: int, population: int, inside: Callable[[], AbstractContextManager[None]]
) -> Turns:
    def ask() -> list[Any]:
        return [optimizer.ask() for _ in range(population)]

    center = np.zeros(dim)
    with inside():
        asked = ask()
    while True:
        candidates = np.array([each.value for each in asked], dtype=np.float64)
        losses = yield Turn(candidates=candidates, center=center)
        with inside():  # to the end of what an algorithm on a thread of its own does in answer
            for candidate, loss in zip(asked, losses, strict=True):
                optimizer.tell(candidate, float(loss))
            # Now, not when read: a recommendation may draw, and looking must not change the run.
            center = np.array(optimizer.provide_recommendation().value)
            asked = ask()


@contextmanager
def _inside(randomness: PrivateRandomness, failure: str) -> Iterator[None]:
    """A context for calls of nevergrad: private random draws, no warnings."""

    def say(error: Exception) -> str:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return (
            f"{failure} ({reason}); install what it lacks, or choose another name, population "
            f"or schedule."
        )

    with randomness.lent(), warnings.catch_warnings(), explained(say):
        warnings.simplefilter("ignore")  # its own, and those of the libraries that it calls
        yield
