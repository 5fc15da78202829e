"""CMA-ES, then COBYLA from the best point so far: the two stages of BBT-RGB.

Sun et al., "Make Prompt-based Black-Box Tuning Colorful: Boosting Model Generalization from Three
Orthogonal Perspectives", 2023. Powell, "A Direct Search Optimization Method That Models the
Objective and Constraint Functions by Linear Interpolation", 1994.

COBYLA fits a plane to the losses of d + 1 points. Until it has them it tries one coordinate at a
time, so with fewer calls than that a block does nothing else.
"""

from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import final

import numpy as np

from dfolora.errors import installed
from dfolora.search.optim.cma import Cma
from dfolora.search.optim.optimizer import (
    Optimizer,
    Point,
    Population,
    Turn,
    Turns,
    Vector,
    finite,
    require_positive,
)
from dfolora.validation import share

TOLERANCE = 1e-4
"""The step, in its first length's units, at which COBYLA has converged and begins again."""
NO_END = 10**9
"""More evaluations than COBYLA makes; the caller's budget ends it."""


@final
class TwoStage(Optimizer):
    """CMA-ES for a share of the budget, a generation a turn; then COBYLA, a candidate a turn.

    COBYLA starts from the caller's incumbent or from the best candidate so far, whichever has the
    lower loss. Its first candidate is that point, whose loss in the present context it needs.

    Args:
        dim: Turns dimension d.
        budget: Calls this optimizer may expect.
        rng: Private generator; COBYLA draws nothing.
        population: Candidates of CMA-ES a generation, P.
        sigma: CMA-ES's initial standard deviation of each coordinate.
        first: Share of the budget that CMA-ES has, in whole generations, one at least; 1 is CMA-ES
            alone.
        step: By how much COBYLA moves a coordinate at first.

    Raises:
        UserError: A value out of its range, or scipy is not installed.
    """

    def __init__(
        self,
        dim: int,
        budget: int,
        rng: np.random.Generator,
        *,
        population: int = 20,
        sigma: float = 1.0,
        first: float = 0.5,
        step: float = 1.0,
    ) -> None:
        require_positive(step=step)
        share(first, "first")
        with installed("pipelines"):
            import scipy.optimize  # noqa: F401, so that its absence is told before the second stage
        cma = Cma(dim, budget, rng, population=population, sigma=sigma)

        def turns() -> Turns:
            while not cma.evaluations or cma.evaluations < first * budget:
                turn = Turn(candidates=cma.ask(), center=cma.center, step_size=cma.step_size)
                cma.tell((yield turn))
            known = [point for point in (self._incumbent, self.best) if point is not None]
            start = min(known, key=lambda point: point.loss).z if known else cma.center
            yield from finite(_cobyla(start, step))

        self._incumbent: Point | None = None
        super().__init__(turns(), population=cma.population)

    def ask(self, incumbent: Point | None = None) -> Population:
        """As of ``Optimizer``; the last incumbent is one that the second stage may start from."""
        self._incumbent = incumbent
        return super().ask(incumbent)


class _EndedError(Exception):
    """Raised within COBYLA when nobody asks it any more."""


def _cobyla(start: Vector, step: float) -> Turns:
    """COBYLA by scipy, from its best point again whenever it has converged.

    It calls its objective, where a generator is to yield. So it runs on a thread of its own, which
    waits for each loss, and which ends with the generator.
    """
    from scipy.optimize import minimize

    best, lowest = start, np.inf
    asked: SimpleQueue[Vector | Exception] = SimpleQueue()
    told: SimpleQueue[float | None] = SimpleQueue()

    def objective(z: Vector) -> float:
        asked.put(z.copy())
        if (loss := told.get()) is None:
            raise _EndedError
        return loss

    def work() -> None:
        options = {"rhobeg": step, "maxiter": NO_END}
        try:
            with suppress(_EndedError):
                while True:
                    minimize(
                        objective, best, method="COBYLA", tol=TOLERANCE * step, options=options
                    )
        except Exception as error:
            asked.put(error)

    # A daemon, for a search that is broken off leaves it waiting, and no exit may wait for it.
    Thread(target=work, name="cobyla", daemon=True).start()
    try:
        while True:
            z = asked.get()
            if isinstance(z, Exception):
                raise z
            (loss,) = yield Turn(candidates=z[None], center=best)
            if loss < lowest:
                best, lowest = z, loss
            told.put(float(loss))
    finally:
        told.put(None)
