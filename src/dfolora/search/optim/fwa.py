"""LoTFWA, the loser-out tournament fireworks algorithm.

Li and Tan, "Loser-Out Tournament-Based Fireworks Algorithm for Multimodal Function Optimization",
IEEE Transactions on Evolutionary Computation 22(5):679-691, 2018.

Each of mu fireworks X_i, of amplitude A_i, explodes into sparks spread over a hypercube around it;
the difference between its best and its worst sparks places one guiding spark; the best of all
these points is the firework of the next generation. Fireworks do not mix. They compete in one
respect only: one that cannot catch up with the best at its present pace starts afresh elsewhere.

A generation takes two asks: first the sparks, with the fireworks whose own loss has to be measured,
then the guiding sparks.
"""

import math
from collections.abc import Sequence
from typing import Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfolora.errors import UserError
from dfolora.search.optim.optimizer import (
    Ledger,
    Losses,
    Point,
    Population,
    Vector,
    require_positive,
    require_room,
)
from dfolora.validation import MOST_POSITIVE, choice, not_negative


@final
class Lotfwa:
    """LoTFWA with options for a search without a box, in a context that changes.

    Args:
        dim: Search dimension d.
        budget: Calls this optimizer may expect; the loser-out rule looks ahead to their end.
        rng: Private generator.
        fireworks: mu.
        sparks: lambda, the explosion sparks of all fireworks together.
        sigma: Standard deviation of a spark's coordinates at the start, as for CMA-ES: those are
            uniform in +-A_0, so A_0 = sqrt(3) sigma.
        alpha: How strongly better fireworks get more sparks; 0 gives all the same.
        guide: Share of a firework's sparks counted as its best, and as its worst.
        amplification: Factor of the amplitude after a generation with improvement.
        reduction: Its factor after one without.
        tolerance: An improvement must be larger than this to count.
        bounds: Box of every coordinate; candidates outside it are mapped back, and fireworks start
            and restart uniformly within. None: no mapping, and they start in +-A_0.
        start: "zero" puts the first firework at exactly 0, "uniform" draws it like the others.
        firework_loss: "current" measures the fireworks anew each generation, for the context has
            changed since; the one that is the caller's incumbent costs nothing. "stored" keeps
            their losses as once measured.

    Raises:
        UserError: A value out of its range.
    """

    def __init__(
        self,
        dim: int,
        budget: int,
        rng: np.random.Generator,
        *,
        fireworks: int = 1,
        sparks: int = 4,
        sigma: float = 1.0,
        alpha: float = 0.0,
        guide: float = 0.2,
        amplification: float = 1.2,
        reduction: float = 0.9,
        tolerance: float = 1e-8,
        bounds: Sequence[float] | None = None,
        start: Literal["zero", "uniform"] = "zero",
        firework_loss: Literal["current", "stored"] = "current",
    ) -> None:
        require_positive(
            dim=dim,
            fireworks=fireworks,
            sparks=sparks,
            sigma=sigma,
            guide=guide,
            amplification=amplification,
            reduction=reduction,
        )
        if sparks < 2 * fireworks:
            raise UserError(
                f"sparks is {sparks} for {fireworks} fireworks; it must be {2 * fireworks} or more:"
                " a guiding spark needs a best and a worst one."
            )
        not_negative(alpha, "alpha")
        not_negative(tolerance, "tolerance")
        require_room(fireworks + sparks, dim)
        if guide > 0.5:
            raise UserError(f"guide is {guide}; it must be at most 0.5: a spark is best or worst.")
        choice(start, "start", ("zero", "uniform"))
        choice(firework_loss, "firework_loss", ("current", "stored"))
        _check_bounds(bounds)
        self._initial_amplitude = math.sqrt(3) * sigma  # U(-A, A) has standard deviation A/sqrt(3)
        box = (-self._initial_amplitude, self._initial_amplitude) if bounds is None else bounds
        self._lower, self._upper = box
        if start == "zero" and not self._lower <= 0 <= self._upper:
            raise UserError(f"start is zero, which lies outside bounds {bounds}; use uniform.")
        self._mu, self._lambda, self._budget, self._rng = fireworks, sparks, budget, rng
        self._alpha, self._guide, self._tolerance = alpha, guide, tolerance
        self._amplification, self._reduction = amplification, reduction
        self._bounded = bounds is not None
        self._remeasure = firework_loss == "current"
        self._x = rng.uniform(self._lower, self._upper, (fireworks, dim))  # X_i
        if start == "zero":
            self._x[0] = 0.0
        self._loss = np.full(fireworks, np.nan)  # F_i; nan: not measured yet
        self._amplitude = np.full(fireworks, self._initial_amplitude)  # A_i
        self._ledger = Ledger()
        self._restarts = 0
        self._measured = np.arange(0)  # the fireworks that head the last explosion
        self._counts = np.arange(0)  # lambda_i of the last explosion
        self._sparks: list[tuple[Population, Losses]] = []  # per firework, once their losses are in
        self._guiding: Population | None = None  # G_i, while their losses are awaited

    @property
    def population(self) -> int:
        """Lambda + mu, beside which fireworks may have to be measured."""
        return self._lambda + self._mu

    @property
    def asks(self) -> int:
        """2: the explosions, then the guiding sparks."""
        return 2

    @property
    def step_size(self) -> float:
        """Amplitude of the best firework."""
        return float(self._amplitude[self._leader])

    @property
    def best(self) -> Point | None:
        """The lowest loss ever told."""
        return self._ledger.best

    @property
    def center(self) -> Vector:
        """``(d,)``: the best firework."""
        center: Vector = self._x[self._leader].copy()
        return center

    @property
    def restarts(self) -> int:
        """How often the tournament threw a firework out."""
        return self._restarts

    @property
    def _leader(self) -> int:
        return int(np.argmin(np.where(np.isnan(self._loss), np.inf, self._loss)))

    def ask(self, incumbent: Point | None = None) -> Population:
        """The explosion, or the guiding sparks, of the generation: ``(P, d)``.

        Args:
            incumbent: Spares the call for the firework that it equals; matters to explosions only.
        """
        guiding = self._guiding
        return self._ledger.ask(lambda: self._explode(incumbent) if guiding is None else guiding)

    def tell(self, losses: ArrayLike) -> None:
        """Place the guiding sparks, or end the generation, by ``losses``, ``(P,)``."""
        population, told = self._ledger.tell(losses)
        if self._guiding is None:
            self._place_guiding_sparks(population, told)
        else:
            self._end_generation(population, told)

    def _explode(self, incumbent: Point | None) -> Population:
        """Fireworks to be measured, then all sparks, firework by firework."""
        # Ranks first: they rest on the losses of the last context where the new are still awaited.
        self._counts = spark_counts(self._loss, self._lambda, self._alpha)
        unknown = np.full(self._mu, True) if self._remeasure else np.isnan(self._loss)
        if incumbent is not None:
            free = unknown & (self._x == incumbent.z).all(axis=1)
            self._loss[free] = incumbent.loss if math.isfinite(incumbent.loss) else np.inf
            unknown &= ~free
        self._measured = np.flatnonzero(unknown)
        owner = np.repeat(np.arange(self._mu), self._counts)
        u = self._rng.uniform(-1.0, 1.0, (len(owner), self._x.shape[1]))
        sparks = self._x[owner] + self._amplitude[owner, None] * u  # s_ij ~ X_i + A_i U(-1, 1)^d
        return np.concatenate([self._x[self._measured], self._mapped(sparks)])

    def _place_guiding_sparks(self, population: Population, losses: Losses) -> None:
        """Take in the explosion, ``(P, d)`` and ``(P,)``; G_i = X_i + Delta_i."""
        ends = len(self._measured) + np.cumsum(self._counts)[:-1]
        fireworks, *groups = np.split(losses, [len(self._measured), *ends])
        self._loss[self._measured] = fireworks
        places = np.split(population, [len(self._measured), *ends])[1:]
        self._sparks = list(zip(places, groups, strict=True))
        delta = [guiding_vector(sparks, told, self._guide) for sparks, told in self._sparks]
        self._guiding = self._mapped(self._x + np.stack(delta))

    def _end_generation(self, guiding: Population, losses: Losses) -> None:
        """Selection, amplitudes and tournament, with the guiding sparks' ``losses``, ``(mu,)``."""
        before = self._loss.copy()
        for i, (sparks, told) in enumerate(self._sparks):
            # X_i <- the best of X_i, its sparks and G_i; X_i itself if none is better.
            contest = np.concatenate([before[i : i + 1], told, losses[i : i + 1]])
            winner = int(np.argmin(contest))
            self._loss[i] = contest[winner]
            if winner > 0:
                self._x[i] = sparks[winner - 1] if winner <= len(sparks) else guiding[i]
        improved = self._loss < before - self._tolerance
        # A_i <- C_a A_i if the firework improved, else C_r A_i
        self._amplitude *= np.where(improved, self._amplification, self._reduction)
        # g_max - g, from what is left to spend
        generations = max(0, self._budget - self._ledger.asked) // self.population
        if generations > 1:  # a single one is too short for a newcomer
            self._restart(losers(before, self._loss, improved, generations))
        self._guiding = None

    def _restart(self, out: NDArray[np.bool_]) -> None:
        """Throw the fireworks of the mask ``out``, ``(mu,)``, somewhere else."""
        self._x[out] = self._rng.uniform(
            self._lower, self._upper, (int(out.sum()), self._x.shape[1])
        )
        self._amplitude[out] = self._initial_amplitude
        self._loss[out] = np.nan  # measured, and charged, with the next explosion
        self._restarts += int(out.sum())

    def _mapped(self, points: Population) -> Population:
        """``points`` with each coordinate out of bounds drawn anew from the whole range."""
        if self._bounded:
            outside = (points < self._lower) | (points > self._upper)
            points[outside] = self._rng.uniform(self._lower, self._upper, int(outside.sum()))
        return points


def _check_bounds(bounds: object) -> None:
    """Raise UserError unless they are None, or a lower and an upper one."""
    pair = bounds if isinstance(bounds, list | tuple) and len(bounds) == 2 else ("", "")
    numbers = all(isinstance(b, int | float) and abs(b) <= MOST_POSITIVE for b in pair)
    if bounds is not None and not (numbers and pair[0] < pair[1]):
        raise UserError(f"bounds={bounds}; give the lower and the upper bound, or null.")


def spark_counts(losses: Losses, sparks: int, alpha: float) -> NDArray[np.int64]:
    """lambda_i = round(lambda r_i^-alpha / sum_j r_j^-alpha), r_i the rank; two at the least.

    The roundings may make their sum differ a little from ``sparks``.

    Args:
        losses: ``(mu,)``; nan ranks last, and equal losses share a rank.
        sparks: lambda.
        alpha: Power of the rank; 0 splits evenly.

    Returns:
        ``(mu,)``.
    """
    known = np.where(np.isnan(losses), np.inf, losses)
    rank = 1.0 + (known[None, :] < known[:, None]).sum(axis=1)
    share = rank**-alpha
    counts: NDArray[np.int64] = np.rint(sparks * share / share.sum()).astype(np.int64)
    return np.maximum(2, counts)


def guiding_vector(sparks: Population, losses: Losses, guide: float) -> Vector:
    """Delta_i = mean of the k best sparks - mean of the k worst, k = max(1, floor(guide n)).

    It points from bad to good. Published implementations exist that subtract the other way round;
    those are much worse on CEC 2013 than the paper.

    Args:
        sparks: ``(n, d)``, of one firework.
        losses: ``(n,)``.
        guide: Share that is best, and that is worst.
    """
    k = max(1, math.floor(guide * len(sparks)))
    order = np.argsort(losses, kind="stable")
    difference: Vector = sparks[order[:k]].mean(axis=0) - sparks[order[-k:]].mean(axis=0)
    return difference


def losers(
    before: Losses, after: Losses, improved: NDArray[np.bool_], generations: int
) -> NDArray[np.bool_]:
    """Who improved, yet would not catch up with the best at that pace: ``(mu,)``.

    delta_i (g_max - g) < F_i - min_j F_j with delta_i the improvement. A firework that stands
    still is spared, for its amplitude is only now shrinking to the right scale.

    Args:
        before: ``(mu,)``, each firework's loss ahead of this generation.
        after: ``(mu,)``, its loss now, at most ``before``.
        improved: ``(mu,)``, whether the difference counts as an improvement.
        generations: g_max - g, those left.
    """
    out = improved.copy()
    gain = before[improved] - after[improved]
    out[improved] = gain * generations < after[improved] - after.min()
    return out
