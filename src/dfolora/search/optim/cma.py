"""CMA-ES, by pycma.

Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772, 2016.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from typing import Any, Literal, final

import cma
import numpy as np
from cma.sigma_adaptation import CMAAdaptSigmaCSA, CMAAdaptSigmaTPA

from dfolora.errors import UserError, explained
from dfolora.resources import check_room
from dfolora.search.optim.optimizer import (
    Optimizer,
    PrivateRandomness,
    Turn,
    Turns,
    finite,
    require_positive,
    require_room,
)
from dfolora.validation import choice, mapping

STEP_SIZE_RULES = {"csa": CMAAdaptSigmaCSA, "tpa": CMAAdaptSigmaTPA}
COVARIANCES = {"full": 0, "diagonal": True}
MATRICES = 3
"""Matrices of d x d that a full covariance needs: itself, its eigenvectors and work space."""

SET_BY_PARAMETERS = {
    "popsize": "population",
    "AdaptSigma": "step_size_rule",
    "CMA_diagonal": "covariance",
    "randn": "rng",
    "seed": "rng",
}
"""pycma's options that are set by a parameter here, and the parameter's name."""

_LEARNERS = ThreadPoolExecutor(max_workers=8, thread_name_prefix="cma")
"""Threads on which blocks learn while the caller evaluates other blocks."""


@final
class Cma(Optimizer):
    """CMA-ES from mean 0, on a private random stream.

    pycma's termination criteria are not read: the caller's budget ends the search. What is told is
    learned, and the next population drawn, on another thread (with TPA at once: it draws from
    process-wide generators); reading waits for it.

    Args:
        dim: Turns dimension d.
        budget: Ignored: CMA-ES has no horizon.
        rng: Private generator.
        population: Candidates a generation, P.
        sigma: Initial standard deviation of each coordinate.
        step_size_rule: "csa", cumulative step-size adaptation, or "tpa", two-point adaptation.
            Always named to pycma, whose default depends on d, covariance and version.
        covariance: "full", or "diagonal" (sep-CMA-ES), whose cost is linear in d.
        options: Further options of pycma, by pycma's names.

    Raises:
        UserError: An option that pycma does not have or that is a parameter here, or a value out
            of its range.
    """

    forgetful = True

    def __init__(
        self,
        dim: int,
        budget: int,
        rng: np.random.Generator,
        *,
        population: int = 20,
        sigma: float = 1.0,
        step_size_rule: Literal["csa", "tpa"] = "csa",
        covariance: Literal["full", "diagonal"] = "full",
        options: Mapping[str, Any] = {},
    ) -> None:
        require_positive(dim=dim, population=population, sigma=sigma)
        choice(step_size_rule, "step_size_rule", STEP_SIZE_RULES)
        choice(covariance, "covariance", COVARIANCES)
        require_room(population, dim)
        if population < 4:
            raise UserError(
                f"population is {population}; CMA-ES needs 4 or more to recombine from."
            )
        _check_options(options)
        if covariance == "full":
            check_room(
                MATRICES * 8 * dim**2,
                f"The covariance of dim={dim} numbers",
                "take a smaller dim, or covariance=diagonal (optimizer=cma_diagonal)",
            )
        randomness = PrivateRandomness(rng)
        with _explained(options):
            with randomness.lent():
                strategy = cma.CMAEvolutionStrategy(
                    dim * [0.0],
                    sigma,
                    {
                        "verbose": -9,
                        # The objective is even about the start, so mirrored samples are duplicates.
                        "CMA_mirrors": 0,
                        # pycma would look for this file in the working directory and obey it.
                        "signals_filename": "",
                        **options,
                        "popsize": population,
                        "AdaptSigma": STEP_SIZE_RULES[step_size_rule],
                        "CMA_diagonal": COVARIANCES[covariance],
                        "randn": lambda *shape: rng.standard_normal(shape),
                        "seed": np.nan,  # pycma's word for: leave the global generator alone
                    },
                )
            # A check in pycma's own code of TPA draws from the process-wide generators.
            own = step_size_rule == "csa"
            turns = finite(_turns(strategy, nullcontext if own else randomness.lent))
            super().__init__(turns, population=strategy.popsize, learner=_LEARNERS if own else None)


def _turns(
    strategy: cma.CMAEvolutionStrategy, inside: Callable[[], AbstractContextManager[None]]
) -> Turns:
    """The loop of pycma: ask and tell, each ``inside`` a context."""
    while True:
        with inside():
            solutions = strategy.ask()
        losses = yield Turn(
            candidates=np.array(solutions, dtype=np.float64),
            # Its mean knows neither bounds nor fixed variables nor whole numbers.
            center=np.array(strategy.to_phenotype(strategy.mean), dtype=np.float64),
            step_size=float(strategy.sigma),
        )
        with inside():
            # pycma recognises its own solutions by identity of content; TPA by their order too.
            strategy.tell(solutions, losses.tolist())


def _explained(options: Mapping[str, Any]) -> AbstractContextManager[None]:
    """A context that blames the options for pycma's errors."""
    if not options:
        return nullcontext()
    return explained(lambda error: f"pycma does not take options={dict(options)}: {error}.")


def _check_options(options: Mapping[str, Any]) -> None:
    known = cma.CMAOptions.defaults()
    for name in mapping(options, "options"):
        if name in SET_BY_PARAMETERS:
            raise UserError(
                f"options names pycma's {name!r}; set the parameter {SET_BY_PARAMETERS[name]!r}."
            )
        if name not in known:
            near = get_close_matches(name, known)
            raise UserError(
                f"options names {name!r}, which pycma {cma.__version__.split()[0]} does not have"
                f"{'; did you mean ' + ', '.join(near) if near else ''}."
            )
