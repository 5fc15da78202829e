"""Descent along gradients estimated from losses: MeZO, FZOO, ZO-AdaMM, R-AdaZO, HiZOO and others.

A step draws K directions u_k of covariance I, measures f at c + sigma u_k, and at c - sigma u_k or
at c itself to compare with, and estimates the gradient at the center c as

    g = 1/K sum_k a_k u_k / sigma,    a_k = f(c + sigma u_k) - f(c)                       one-sided
                                      a_k = (f(c + sigma u_k) - f(c - sigma u_k)) / 2     two-sided

(Spall 1992, IEEE TAC 37(3); Nesterov and Spokoiny 2017, Found. Comput. Math. 17). What becomes of g
until it is a step tells the published methods apart; `conf/optimizer/` has their values:

    MeZO: Malladi et al., arXiv:2305.17333, 2023. FZOO: arXiv:2506.09034, 2025.
    ZO-AdaMM: Chen et al., arXiv:1910.06513, 2019. R-AdaZO: arXiv:2502.01014, 2025.
    HiZOO: Zhao et al., arXiv:2402.15173, 2024. MEAZO: arXiv:2605.03869, 2026.
    LOREN (the baseline): AAAI 2026. ES: Salimans et al., arXiv:1703.03864, 2017.
    LOZO and LOZO-M: Chen et al., arXiv:2410.07698, 2024; their directions are in `low_rank.py`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from dfolora.errors import UserError
from dfolora.search.optim.low_rank import LowRank
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
from dfolora.validation import choice, flag, not_negative, share, whole

SECONDS = ("none", "gradient", "max", "moment", "scalar")


@final
class ZerothOrder(Optimizer):
    """Descends along an estimated gradient from 0.

    A direction of which an evaluation failed is left out of the estimate. Where nothing is left, or
    what is left tells no direction from another, the center stays.

    Args:
        dim: Turns dimension d.
        budget: Calls this optimizer may expect; linear decay ends with them.
        rng: Private generator.
        directions: K.
        sides: "one" compares c + sigma u with the baseline, "two" with c - sigma u.
        law: Of u: "normal", "rademacher" (each coordinate +-1), "sphere" (length sqrt(d)),
            "orthogonal" (that length, and at right angles to each other), or a ``LowRank``.
        sigma: Distance at which losses are measured, as standard deviation of each coordinate.
        lr: Length of a step: the factor of g; in units of sigma where ``scale`` or ``second`` make
            the step independent of the losses' scale.
        decay: Of the length: "linear" to 0 at the end of the budget, "sqrt" as 1 / sqrt(step), or
            "none".
        baseline: What one side is compared with: "incumbent", the loss at c, which costs a call
            unless the caller knows it; or "mean", of the losses of the other directions.
        scale: "std" divides the a_k by the standard deviation of the step's losses, "rms" the step
            by its root mean square; or "none".
        momentum: beta1: g is averaged as m = beta1 m + (1 - beta1) g. With a ``LowRank`` law m is
            brought into the span of each new V first (LOZO-M).
        second: The step is m / sqrt(v), where v averages the squares of g ("gradient"; "max" takes
            the highest v so far), those of m ("moment") or the mean of g's ("scalar"). Or "none".
        beta2: Of v: v = beta2 v + (1 - beta2) square.
        bias_correction: Whether m and v, which begin at 0, are divided by 1 - beta^step.
        damping: Added to sqrt(v).
        curvature: HiZOO's alpha: how much of an estimate of the Hessian's diagonal H goes into its
            average each step; directions are then u / sqrt(H). 0 for none.

    Raises:
        UserError: A value out of its range, or values that do not go together.
    """

    forgetful = True

    def __init__(
        self,
        dim: int,
        budget: int,
        rng: np.random.Generator,
        *,
        directions: int = 4,
        sides: Literal["one", "two"] = "one",
        law: Literal["normal", "rademacher", "sphere", "orthogonal"] | LowRank = "normal",
        sigma: float = 0.3,
        lr: float = 0.8,
        decay: Literal["linear", "sqrt", "none"] = "linear",
        baseline: Literal["incumbent", "mean"] = "incumbent",
        scale: Literal["none", "std", "rms"] = "rms",
        momentum: float = 0.5,
        second: Literal["none", "gradient", "max", "moment", "scalar"] = "none",
        beta2: float = 0.99,
        bias_correction: bool = False,
        damping: float = 0.0,
        curvature: float = 0.0,
    ) -> None:
        require_positive(dim=dim, sigma=sigma, lr=lr)
        whole(directions, "directions", least=1)
        choice(sides, "sides", ("one", "two"))
        if isinstance(law, LowRank):
            law.check(dim)
        else:
            choice(law, "law", LAWS)
        choice(decay, "decay", DECAYS)
        choice(baseline, "baseline", ("incumbent", "mean"))
        choice(scale, "scale", ("none", "std", "rms"))
        choice(second, "second", SECONDS)
        _below_one(momentum=momentum, beta2=beta2, curvature=curvature)
        flag(bias_correction, "bias_correction")
        not_negative(damping, "damping")
        if directions == 1 and sides == "one" and (scale == "std" or baseline == "mean"):
            raise UserError(
                "One loss has neither a standard deviation nor others to compare it with: for "
                f"scale={scale} and baseline={baseline} set directions to 2 or more."
            )
        if law == "orthogonal" and directions > dim:
            raise UserError(
                f"directions is {directions}; in dim={dim} at most {dim} are orthogonal."
            )
        if curvature and (sides, law) != ("two", "normal"):
            raise UserError(
                f"curvature={curvature} is seen by sides=two and law=normal only; got sides={sides}"
                f" and law={law}."
            )
        centered = bool(curvature) or (sides == "one" and baseline == "incumbent")
        signs = np.array([1.0, -1.0] if sides == "two" else [1.0])
        population = directions * len(signs)
        calls = population + centered
        require_room(calls, dim)
        unit = lr if scale == second == "none" else lr * sigma
        lengths = DECAYS[decay]
        steps = max(1, budget // calls)

        def turns() -> Turns:
            c, h = np.zeros(dim), np.ones(dim)
            moments = _Moments(momentum, beta2, second, bias_correction, damping)
            for step, (z, gone, onto) in enumerate(_drawn(law, rng, directions, dim)):
                if onto is not None:
                    moments.m = onto(np.broadcast_to(moments.m, dim))  # it begins as the number 0
                u = z / np.sqrt(h)
                points = c + sigma * (u[:, None] * signs[:, None]).reshape(population, dim)
                told = yield Turn(
                    candidates=np.concatenate([c[None], points]) if centered else points,
                    center=c,
                    step_size=sigma,
                    revisited=int(centered),
                )
                center = float(told[0]) if centered else math.nan
                losses = told[int(centered) :].reshape(directions, -1)
                succeeded = np.isfinite(losses).all(axis=1)
                along = gone / np.sqrt(h)
                z, along, losses = z[succeeded], along[succeeded], losses[succeeded]
                if not len(losses):
                    continue
                a = rises(losses, center)
                divisor = _deviation(losses) if scale == "std" else sigma
                if not a.any() or divisor == 0:
                    continue
                direction = moments.direction(a @ along / (len(a) * divisor))
                if scale == "rms":
                    direction = _quotient(direction, np.sqrt((direction**2).mean()))
                c = c - unit * lengths(step, steps) * direction
                if curvature and math.isfinite(center):
                    h = (1 - curvature) * h + curvature * np.abs(
                        hessian_diagonal(losses, center, z, h, sigma)
                    )

        self.symmetric = sides == "two"
        self.normalised = sides == "one" and (scale, second) != ("none", "none")
        super().__init__(turns(), population=population)


def _drawn(
    law: str | LowRank, rng: np.random.Generator, directions: int, dim: int
) -> Iterator[tuple[Population, Population, Callable[[Vector], Vector] | None]]:
    """The directions of each step: those measured and those gone along, ``(K, d)`` each.

    Beside them stands what the momentum goes through first, if any.
    """
    if isinstance(law, LowRank):
        yield from law.directions(rng, directions, dim)
    else:
        while True:
            z = LAWS[law](rng.standard_normal((directions, dim)))
            yield z, z, None


@dataclass
class _Moments:
    """From gradients to directions: running averages of the gradients and of their squares."""

    beta1: float
    beta2: float
    second: str
    corrected: bool
    damping: float
    steps: int = 0
    m: Vector | float = 0.0
    v: Vector | float = 0.0
    highest: Vector | float = 0.0
    """The highest v so far, of each coordinate."""

    def direction(self, g: Vector) -> Vector:
        """``(d,)``."""
        self.steps += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        m = self.m / (1 - self.beta1**self.steps) if self.corrected else self.m
        if self.second == "none":
            return m
        square = (self.m if self.second == "moment" else g) ** 2  # R-AdaZO squares m
        if self.second == "scalar":
            square = square.mean()
        self.v = self.beta2 * self.v + (1 - self.beta2) * square
        v = self.v / (1 - self.beta2**self.steps) if self.corrected else self.v
        if self.second == "max":
            v = self.highest = np.maximum(self.highest, v)
        return _quotient(m, np.sqrt(v) + self.damping)


def rises(losses: Losses, center: float) -> Losses:
    """How much the loss rises along each direction, a_k: ``(K,)``.

    Args:
        losses: ``(K, 1)``, or ``(K, 2)`` of pairs.
        center: The loss at the center. Where it is none, each direction is compared with the mean
            of the others, which leaves the estimate unbiased (LOREN): l_k - (sum - l_k) / (K - 1).
    """
    ahead = losses[:, 0]
    if losses.shape[1] == 2:
        return (ahead - losses[:, 1]) / 2
    if math.isfinite(center):
        return ahead - center
    apart = ahead - ahead[0]  # exactly 0 where all are equal
    return (apart - apart.mean()) * len(apart) / max(1, len(apart) - 1)


def hessian_diagonal(
    losses: Losses, center: float, z: Population, h: Vector, sigma: float
) -> Vector:
    """HiZOO's estimate of the Hessian's diagonal: the mean of b_k / (2 sigma^2) H (z_k^2 - 1).

    b_k = l+ + l- - 2 l_0 for the direction z_k / sqrt(H). Without the -1, as in the released code,
    half the trace of the Hessian, as measured in H, would come on top.

    Args:
        losses: ``(K, 2)``.
        center: l_0.
        z: ``(K, d)``, normal.
        h: ``(d,)``, the H that directions were drawn with.
        sigma: Distance of the pairs.

    Returns:
        ``(d,)``, of either sign.
    """
    b = losses.sum(axis=1) - 2 * center
    return b @ (z**2 - 1) / len(b) * h / (2 * sigma**2)


def _deviation(losses: Losses) -> float:
    """FZOO's standard deviation, by N - 1 as in the paper; its code has N. Exactly 0 of equals."""
    return float(losses.std(ddof=1)) if np.ptp(losses) > 0 else 0.0


def _quotient(numerator: Vector, denominator: Vector) -> Vector:
    """The quotient, and 0 where the denominator is 0: what never changed a loss makes no step."""
    zeros = np.zeros_like(numerator)
    return np.divide(numerator, denominator, out=zeros, where=np.asarray(denominator) > 0)


def _on_sphere(normal: Population) -> Population:
    """Directions of length sqrt(d): the paper's unit sphere and its factor d, with covariance I."""
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    return normal * (math.sqrt(normal.shape[1]) / length)


def _at_right_angles(normal: Population) -> Population:
    """K <= d directions of length sqrt(d), orthogonal to each other, uniform over all such."""
    q, r = np.linalg.qr(normal.T)
    # LAPACK chooses signs by the first coordinates; those of R's diagonal undo it.
    return (q * np.sign(np.diagonal(r))).T * math.sqrt(normal.shape[1])


LAWS: Mapping[str, Callable[[Population], Population]] = {
    "normal": lambda normal: normal,
    "rademacher": lambda normal: np.copysign(1.0, normal),
    "sphere": _on_sphere,
    "orthogonal": _at_right_angles,
}
"""From normal numbers, ``(K, d)``, to directions of covariance I."""

DECAYS: Mapping[str, Callable[[int, int], float]] = {
    # A block may get more turns than expected; those are as long as the last.
    "linear": lambda step, steps: max(1, steps - step) / steps,
    "sqrt": lambda step, _: 1 / math.sqrt(step + 1),
    "none": lambda *_: 1.0,
}
"""From a step's number, and that of steps expected, to the factor of its length."""


def _below_one(**values: object) -> None:
    for name, value in values.items():
        if share(value, name) == 1:
            raise UserError(f"{name}={value} must be less than 1, or nothing new would count.")
