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
from numpy.typing import NDArray

from dfolora.errors import UserError
from dfolora.search.optim.optimizer import (
    Losses,
    Optimizer,
    Population,
    Turn,
    Turns,
    Vector,
    require_positive,
    require_room,
)
from dfolora.validation import MOST_POSITIVE, choice, not_negative


@final
class Lotfwa(Optimizer):
    """LoTFWA, with options for unbounded search and for losses that change with the context.

    Args:
        dim: Turns dimension d.
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
        amplitude = math.sqrt(3) * sigma  # U(-A, A) has standard deviation A / sqrt(3)
        lower, upper = (-amplitude, amplitude) if bounds is None else bounds
        if start == "zero" and not lower <= 0 <= upper:
            raise UserError(f"start is zero, which lies outside bounds {bounds}; use uniform.")

        def turns() -> Turns:
            x = rng.uniform(lower, upper, (fireworks, dim))  # X_i
            if start == "zero":
                x[0] = 0.0
            loss = np.full(fireworks, np.nan)  # F(X_i), nan where not measured yet
            a = np.full(fireworks, amplitude)  # A_i

            def mapped(points: Population) -> Population:
                """Redraw each coordinate that is out of bounds from the whole range."""
                if bounds is not None:
                    outside = (points < lower) | (points > upper)
                    points[outside] = rng.uniform(lower, upper, int(outside.sum()))
                return points

            def turn(points: Population, revisited: int = 0) -> Turn:
                leader = np.argmin(np.where(np.isnan(loss), np.inf, loss))
                return Turn(
                    candidates=points,
                    center=x[leader].copy(),
                    step_size=float(a[leader]),
                    revisited=revisited,
                )

            while True:
                # Sparks s_ij explode from X_i to X_i + A_i U(-1, 1)^d.
                counts = spark_counts(loss, sparks, alpha)
                owner = np.repeat(np.arange(fireworks), counts)
                s = mapped(x[owner] + a[owner, None] * rng.uniform(-1.0, 1.0, (len(owner), dim)))
                measured = np.isnan(loss) | (firework_loss == "current")
                revisited = int(measured.sum())
                told = yield turn(np.concatenate([x[measured], s]), revisited)
                loss[measured], of_s = told[:revisited], told[revisited:]
                # The guiding spark G_i is X_i + Delta_i.
                each = [owner == i for i in range(fireworks)]
                delta = [guiding_vector(s[mine], of_s[mine], guide) for mine in each]
                g = mapped(x + np.stack(delta))
                of_g = yield turn(g)
                # X_i becomes the best of itself, its sparks and G_i; it stays if none is better.
                before = loss.copy()
                for i, mine in enumerate(each):
                    points = np.concatenate([x[i : i + 1], s[mine], g[i : i + 1]])
                    losses = np.concatenate([before[i : i + 1], of_s[mine], of_g[i : i + 1]])
                    x[i], loss[i] = points[losses.argmin()], losses.min()
                # A_i becomes C_a A_i where the firework improved, else C_r A_i.
                improved = loss < before - tolerance
                a *= np.where(improved, amplification, reduction)
                # In the tournament those who cannot catch up in g_max - g generations start afresh.
                left = max(0, budget - self.evaluations) // self.population
                if left > 1:  # one is too short for a newcomer
                    out = losers(before, loss, improved, left)
                    x[out] = rng.uniform(lower, upper, (int(out.sum()), dim))
                    a[out], loss[out] = amplitude, np.nan
                    self.restarts += int(out.sum())

        self.restarts = 0
        """How often the tournament threw a firework out."""
        super().__init__(turns(), population=sparks + fireworks, asks=2)


def _check_bounds(bounds: object) -> None:
    """Raise UserError unless the bounds are None or a lower and an upper number."""
    pair = bounds if isinstance(bounds, list | tuple) and len(bounds) == 2 else ("", "")
    numbers = all(isinstance(b, int | float) and abs(b) <= MOST_POSITIVE for b in pair)
    if bounds is not None and not (numbers and pair[0] < pair[1]):
        raise UserError(f"bounds={bounds}; give the lower and the upper bound, or null.")


def spark_counts(losses: Losses, sparks: int, alpha: float) -> NDArray[np.int64]:
    """Sparks per firework: round(lambda r_i^-alpha / sum_j r_j^-alpha), r_i its rank; at least 2.

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
    """Mean of the k best sparks minus mean of the k worst, k = max(1, floor(guide n)).

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
    """Fireworks that improved but cannot catch up with the best at that pace: ``(mu,)``.

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
