"""What a derivative-free optimizer is here: vectors and numbers, asked and told.

An optimizer searches one block. It knows nothing of models or data, draws from a private generator
only, and is a function of that generator and of the losses it was told. The loop is the caller's:

    while budget lasts:
        for _ in range(optimizer.asks):
            optimizer.tell(evaluate(optimizer.ask(incumbent)))

Letters: P candidates, d search dimension.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfolora.resources import check_room
from dfolora.validation import positive, whole

Vector: TypeAlias = NDArray[np.float64]
"""One point, ``(d,)``."""

Population: TypeAlias = NDArray[np.float64]
"""Candidates in rows, ``(P, d)``."""

Losses: TypeAlias = NDArray[np.float64]
"""One number a candidate, ``(P,)``; lower is better."""


COUNTS = ("dim", "budget", "population", "fireworks", "sparks")
"""Parameters of optimizers that are whole numbers."""


# Arrays have no single truth value, so points compare by identity.
@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """A point and what it costs."""

    z: Vector
    """``(d,)``."""
    loss: float
    """Its loss in the context in which it was measured."""


class Optimizer(Protocol):
    """Proposes candidates and learns from their losses."""

    @property
    def population(self) -> int:
        """Evaluations that one generation nominally costs."""
        ...

    @property
    def asks(self) -> int:
        """How often a generation asks and tells: mostly once, fireworks twice."""
        ...

    @property
    def step_size(self) -> float:
        """Current scale of the search, for curves; nan where the optimizer has none."""
        ...

    @property
    def best(self) -> Point | None:
        """The lowest loss ever told, as measured then; None before a finite loss was told."""
        ...

    @property
    def center(self) -> Vector:
        """``(d,)``: the point the optimizer would recommend, sampled or not."""
        ...

    def ask(self, incumbent: Point | None = None) -> Population:
        """The next candidates, ``(P, d)``; P may vary from call to call.

        Args:
            incumbent: What this block contributes to the whole solution at present, with the
                loss of that whole solution now, in the current context of the other blocks.
                None when unknown.

        Raises:
            ValueError: The last population still waits for its losses.
        """
        ...

    def tell(self, losses: ArrayLike) -> None:
        """Learn from the losses of the last population.

        Args:
            losses: ``(P,)``, in the order asked; nan and infinities of either sign rank worst.
                Left untouched.

        Raises:
            ValueError: Nothing was asked, or the number of losses is not that of candidates.
        """
        ...


class OptimizerFactory(Protocol):
    """Builds the optimizer of one block; its hyper-parameters are bound beforehand."""

    def __call__(self, *, dim: int, budget: int, rng: np.random.Generator) -> Optimizer:
        """A fresh optimizer.

        Args:
            dim: Search dimension d.
            budget: Calls this block may expect in all. Optimizers without a horizon ignore it.
            rng: The optimizer's own stream; nobody else may draw from it.
        """
        ...


@final
class Ledger:
    """The bookkeeping of one optimizer: what waits for its losses, and what has been learned."""

    def __init__(self) -> None:
        self.asked = 0
        """Candidates handed out so far."""
        self.best: Point | None = None
        """The point of the lowest loss told so far."""
        self._worst = 0.0  # or a higher loss, once told
        self._pending: Population | None = None

    def ask(self, draw: Callable[[], Population]) -> Population:
        """Hand out what ``draw`` returns, ``(P, d)``; nothing is drawn if a population waits."""
        if self._pending is not None:
            raise ValueError(
                f"ask() was called while {len(self._pending)} candidates wait for their losses; "
                "call tell() with them first."
            )
        self._pending = draw()
        self.asked += len(self._pending)
        return self._pending.copy()

    def tell(self, losses: ArrayLike) -> tuple[Population, Losses]:
        """Take the losses of the waiting population.

        Args:
            losses: ``(P,)``, any numbers.

        Returns:
            That population, ``(P, d)``, and its losses, ``(P,)``, a new array in which whatever
            was not finite is plus infinity.
        """
        if self._pending is None:
            raise ValueError("tell() was called with nothing to tell of; call ask() first.")
        told = np.asarray(losses, dtype=np.float64)
        if told.shape != (len(self._pending),):
            raise ValueError(
                f"tell() got losses of shape {told.shape}; it needs {(len(self._pending),)}, "
                "one for each candidate of the last ask(), in its order."
            )
        finite = np.isfinite(told)
        told = np.where(finite, told, np.inf)
        population, self._pending = self._pending, None
        if finite.any():
            lowest = int(np.argmin(told))
            if self.best is None or told[lowest] < self.best.loss:
                self.best = Point(z=population[lowest].copy(), loss=float(told[lowest]))
            self._worst = max(self._worst, float(told[finite].max()))
        return population, told

    def finite(self, losses: Losses) -> Losses:
        """``losses`` with infinities made finite, yet worse than all told so far: ``(P,)``."""
        return np.where(np.isfinite(losses), losses, np.nextafter(self._worst, np.inf))


@final
class PrivateRandomness:
    """Stands in for the process-wide generators while code runs that draws from them."""

    def __init__(self, rng: np.random.Generator) -> None:
        # A child stream, so that the draws from ``rng`` itself are what they would be without it.
        seed = int(rng.spawn(1)[0].integers(2**32))
        self._states = random.Random(seed).getstate(), np.random.RandomState(seed).get_state()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within, ``random`` and ``numpy.random`` are ours; on leaving, they are as before."""
        outer = _exchange(*self._states)
        try:
            yield
        finally:
            self._states = _exchange(*outer)


def _exchange(python: Any, numpy: Any) -> tuple[Any, Any]:
    """Give the process-wide generators these states, and return those that they had."""
    former = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    return former


def require_positive(**values: object) -> None:
    """Check that every named value is a number above zero, and a whole one where it counts things.

    Raises:
        UserError: One is not; the message names it.
    """
    for name, value in values.items():
        if name in COUNTS:
            whole(value, name, least=1)
        else:
            positive(value, name)


def require_room(candidates: int, dim: int) -> None:
    """Check that a generation fits into memory.

    Raises:
        UserError: It does not.
    """
    check_room(
        8 * candidates * dim,
        f"A generation of {candidates} candidates of {dim} numbers",
        "take a smaller population or dim",
    )
