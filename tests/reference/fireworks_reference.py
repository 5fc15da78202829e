"""LoTFWA one number at a time, as an oracle for the vectorised one.

Written from the description in Li and Tan 2018 (IEEE TEVC 22(5)) with the loops left in. It makes
the random draws in the order that the fast one makes them, so both walk the same path.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Firework:
    x: list[float]
    amplitude: float
    loss: float | None = None
    sparks: list[list[float]] = field(default_factory=list)


def split(fireworks, sparks, alpha):
    """Sparks of each firework: by rank, rounded, two or more."""
    known = [float("inf") if f.loss is None else f.loss for f in fireworks]
    ranks = [1 + sum(other < loss for other in known) for loss in known]
    total = sum(rank**-alpha for rank in ranks)
    return [max(2, round(sparks * rank**-alpha / total)) for rank in ranks]


def guiding_vector(sparks, losses, guide):
    """Mean of the k best sparks minus mean of the k worst, coordinate by coordinate."""
    k = max(1, int(guide * len(sparks)))
    ranked = [spark for _, _, spark in sorted(zip(losses, range(len(sparks)), sparks, strict=True))]
    best, worst = ranked[:k], ranked[len(ranked) - k :]
    return [
        sum(spark[c] for spark in best) / k - sum(spark[c] for spark in worst) / k
        for c in range(len(sparks[0]))
    ]


def is_loser(before, after, leader, generations):
    improvement = before - after
    return improvement > 1e-8 and improvement * generations < after - leader


def run(
    f: Callable[[list[float]], float],
    rng: np.random.Generator,
    *,
    dim: int,
    budget: int,
    generations: int,
    fireworks: int,
    sparks: int,
    amplitude: float,
    alpha: float,
    bounds: tuple[float, float],
):
    """The fireworks after each generation, as (x, amplitude) lists, and the number of restarts."""
    lower, upper = bounds

    def fresh():
        return [rng.uniform(lower, upper) for _ in range(dim)]

    def mapped(x):
        return [c if lower <= c <= upper else rng.uniform(lower, upper) for c in x]

    crowd = [Firework(fresh(), amplitude) for _ in range(fireworks)]
    spent = restarts = 0
    history = []
    for _ in range(generations):
        counts = split(crowd, sparks, alpha)
        for firework, count in zip(crowd, counts, strict=True):
            firework.sparks = [
                [c + firework.amplitude * rng.uniform(-1, 1) for c in firework.x]
                for _ in range(count)
            ]
        for firework in crowd:
            firework.sparks = [mapped(spark) for spark in firework.sparks]
            spent += len(firework.sparks)
            if firework.loss is None:
                firework.loss = f(firework.x)
                spent += 1
        guides = []
        for firework in crowd:
            delta = guiding_vector(firework.sparks, [f(s) for s in firework.sparks], 0.2)
            guides.append(mapped([c + step for c, step in zip(firework.x, delta, strict=True)]))
            spent += 1
        before = [firework.loss for firework in crowd]
        for firework, guide in zip(crowd, guides, strict=True):
            for candidate in [*firework.sparks, guide]:
                if f(candidate) < firework.loss:
                    firework.x, firework.loss = candidate, f(candidate)
        left = (budget - spent) // (sparks + fireworks)
        after = [firework.loss for firework in crowd]
        for i, firework in enumerate(crowd):
            firework.amplitude *= 1.2 if before[i] - after[i] > 1e-8 else 0.9
        for i, firework in enumerate(crowd):
            if left > 1 and is_loser(before[i], after[i], min(after), left):
                firework.x, firework.loss, firework.amplitude = fresh(), None, amplitude
                restarts += 1
        history.append([(firework.x, firework.amplitude) for firework in crowd])
    return history, restarts
