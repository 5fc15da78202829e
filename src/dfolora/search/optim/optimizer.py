"""The interface of derivative-free optimizers: ask for candidates, tell their losses.

An optimizer searches one block. It knows nothing of models or data, draws from a private generator
only, and is a function of that generator and of the losses it was told. An algorithm is a Python
generator, ``losses = yield Turn(...)``; ``Optimizer`` makes ask and tell of it, as the loop is the
caller's:

    while budget lasts:
        for _ in range(optimizer.asks):
            optimizer.tell(evaluate(optimizer.ask(incumbent)))

Letters: P candidates, d search dimension.
"""

import math
import random
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
"""One number per candidate, ``(P,)``; lower is better."""


COUNTS = ("dim", "budget", "population", "fireworks", "sparks")
"""Optimizer parameters that are integers."""


# Arrays have no single truth value, so points and turns compare by identity.
@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """A point and its loss."""

    z: Vector
    """``(d,)``."""
    loss: float
    """Its loss in the context in which it was measured."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Turn:
    """One step of an algorithm: the candidates to evaluate, and its state before they are."""

    candidates: Population
    """``(P, d)``."""
    center: Vector
    """``(d,)``: the point it would recommend."""
    step_size: float = math.nan
    """Its scale."""
    revisited: int = 0
    """The number of leading candidates that were asked before. If the caller's incumbent is one of
    them, it is not asked again: its loss is known."""


Turns: TypeAlias = Generator[Turn, Losses, None]
"""An algorithm: ``losses = yield turn``. Failed evaluations have a loss of inf."""


class Optimizer:
    """Runs an algorithm by ask and tell.

    Args:
        turns: The algorithm, which draws its first candidates here.
        population: Evaluations that one generation nominally costs.
        asks: Turns that make a generation: mostly one; two where a second one builds on the first.
        learner: Where the algorithm learns while the caller does something else; None for at once.
    """

    symmetric: bool = False
    """Whether it learns from pairs c + u, c - u alone, which an even objective makes equal at 0."""

    normalised: bool = False
    """Whether its steps are one-sided and equally long whatever the losses' scale: from 0, where an
    even objective does not tell u from -u, they go where chance has it."""

    forgetful: bool = False
    """Whether it compares losses of one turn alone."""

    bound: float | None = None
    """Coordinates stay within +- bound: what the algorithm puts beyond is reflected there, so to it
    the objective goes on as its mirror image. None for no bound."""

    def __init__(
        self, turns: Turns, *, population: int, asks: int = 1, learner: Executor | None = None
    ) -> None:
        self.population = population
        self.asks = asks
        self.best: Point | None = None
        """The lowest loss ever told, as measured then; None before a finite loss was told."""
        self.evaluations = 0
        """Candidates asked so far."""
        self._turns = turns
        self._learner = learner
        self._turn: Turn | Future[Turn] = next(turns)
        self._known: Losses | None = None  # of the candidates that wait, nan where asked

    @property
    def step_size(self) -> float:
        """Current scale of the search, for curves; NaN if the algorithm has none."""
        return self._reached().step_size

    @property
    def center(self) -> Vector:
        """``(d,)``: the point the algorithm would recommend, sampled or not."""
        return self._reached().center.copy()

    def ask(self, incumbent: Point | None = None) -> Population:
        """The next candidates, ``(P, d)``; P may vary from call to call.

        Args:
            incumbent: What this block contributes to the whole solution at present, with the
                loss of that whole solution now, in the current context of the other blocks.
                None when unknown. An algorithm that would measure it anew is told that loss.

        Raises:
            ValueError: The last candidates still wait for their losses.
        """
        turn = self._reached()
        if self._known is not None:
            raise ValueError(
                f"ask() was called while {np.isnan(self._known).sum()} candidates wait for their "
                "losses; call tell() with them first."
            )
        self._known = np.full(len(turn.candidates), np.nan)
        if incumbent is not None:
            same = (turn.candidates[: turn.revisited] == incumbent.z).all(axis=1)
            loss = incumbent.loss if math.isfinite(incumbent.loss) else np.inf
            self._known[: turn.revisited][same] = loss
        asked = turn.candidates[np.isnan(self._known)]
        self.evaluations += len(asked)
        return asked

    def tell(self, losses: ArrayLike) -> None:
        """Learn from the losses of the last candidates.

        Args:
            losses: ``(P,)``, in the order asked; nan and infinities of either sign rank worst.
                Left untouched.

        Raises:
            ValueError: Nothing was asked, or the number of losses is not that of candidates.
        """
        if self._known is None:
            raise ValueError("tell() was called with nothing to tell of; call ask() first.")
        told, asked = np.asarray(losses, dtype=np.float64), np.isnan(self._known)
        if told.shape != (asked.sum(),):
            raise ValueError(
                f"tell() got losses of shape {told.shape}; it needs {(int(asked.sum()),)}, "
                "one for each candidate of the last ask(), in its order."
            )
        told = np.where(np.isfinite(told), told, np.inf)
        lowest = int(np.argmin(told))
        if told[lowest] < (np.inf if self.best is None else self.best.loss):
            z = self._reached().candidates[asked][lowest]
            self.best = Point(z=z, loss=float(told[lowest]))
        self._known[asked] = told
        known, self._known = self._known, None
        if self._learner is None:
            self._turn = self._turns.send(known)
        else:
            self._turn = self._learner.submit(self._turns.send, known)

    def _reached(self) -> Turn:
        if isinstance(self._turn, Future):
            self._turn = self._turn.result()
        if self.bound is None:
            return self._turn
        return replace(
            self._turn,
            candidates=reflected(self._turn.candidates, self.bound),
            center=reflected(self._turn.center, self.bound),
        )


class OptimizerFactory(Protocol):
    """Builds the optimizer of one block; hyper-parameters are already bound."""

    def __call__(self, *, dim: int, budget: int, rng: np.random.Generator) -> Optimizer:
        """A fresh optimizer.

        Args:
            dim: Search dimension d.
            budget: Calls this block may expect in all. Optimizers without a horizon ignore it.
            rng: The optimizer's own stream; nobody else may draw from it.
        """
        ...


UNKNOWN = 1e9
"""The loss of a failure before anything has succeeded: some algorithms never forget their best."""


def finite(turns: Turns) -> Turns:
    """The same algorithm with finite losses: a failure gets a loss above all so far."""
    turn, worst = next(turns), -np.inf
    while True:
        losses = yield turn
        succeeded = np.isfinite(losses)
        worst = max(worst, losses[succeeded].max(initial=-np.inf))
        failed = np.nextafter(worst, np.inf) if np.isfinite(worst) else UNKNOWN
        turn = turns.send(np.where(succeeded, losses, failed))


def reflected(points: Vector, bound: float) -> Vector:
    """Points with what is beyond +- bound reflected there, as often as it takes; of any shape."""
    folded = bound - np.abs((points + bound) % (4 * bound) - 2 * bound)
    return np.where(np.abs(points) <= bound, points, folded)


@final
class PrivateRandomness:
    """A private state for code that draws from the process-wide generators."""

    def __init__(self, rng: np.random.Generator) -> None:
        # A child stream, so that the draws from ``rng`` itself are what they would be without it.
        seed = int(rng.spawn(1)[0].integers(2**32))
        self._states = random.Random(seed).getstate(), np.random.RandomState(seed).get_state()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """A context in which ``random`` and ``numpy.random`` have the private state."""
        outer = _exchange(*self._states)
        try:
            yield
        finally:
            self._states = _exchange(*outer)


def _exchange(python: Any, numpy: Any) -> tuple[Any, Any]:
    """Set the states of the process-wide generators and return the former ones."""
    former = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    return former


def require_positive(**values: object) -> None:
    """Check that each value is positive, and an integer if it is a count.

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
