"""MeZO-GV and MeZO-Greedy: two-sided steps along a direction that probes have chosen.

arXiv:2601.04710, 2026, algorithms 1 to 4. A generation takes two asks: M probes around the center,
then a pair on either side of it along the guide. Along +v and -v the pair makes the same step, so a
guide only chooses a line; of two probes it makes no better one than chance does.
"""

import math
from itertools import count
from typing import Literal, final

import numpy as np

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
from dfolora.search.optim.zeroth_order import DECAYS, rises
from dfolora.validation import choice, share, whole


@final
class Probing(Optimizer):
    """Descends along guides, from 0. Failed probes rank worst; of a failed pair no step is made.

    Probes are compared with probes and the pair with itself. On minibatches both have the same
    rows, so that the guide is one for the rows on which it is followed.

    Args:
        dim: Turns dimension d.
        budget: Calls this optimizer may expect; linear decay ends with them.
        rng: Private generator.
        probes: M.
        guide: "contrast" is the mean of the best probes minus the mean of the others (MeZO-GV),
            "best" the best probe (MeZO-Greedy).
        best: Share of the probes that the contrast counts as best, rounded down.
        sigma: Standard deviation of each coordinate of the probes.
        lr: The factor of the estimated gradient.
        decay: Of that factor: "linear" to 0 at the end of the budget, "sqrt" as 1 / sqrt(step), or
            "none".

    Raises:
        UserError: A value out of its range.
    """

    forgetful = True

    def __init__(
        self,
        dim: int,
        budget: int,
        rng: np.random.Generator,
        *,
        probes: int = 4,
        guide: Literal["contrast", "best"] = "contrast",
        best: float = 0.5,
        sigma: float = 0.3,
        lr: float = 10.0,
        decay: Literal["linear", "sqrt", "none"] = "linear",
    ) -> None:
        require_positive(dim=dim, sigma=sigma, lr=lr)
        whole(probes, "probes", least=2)
        choice(guide, "guide", ("contrast", "best"))
        choice(decay, "decay", DECAYS)
        top = math.floor(share(best, "best") * probes)
        if guide == "contrast" and not 0 < top < probes:
            raise UserError(
                f"best={best} of {probes} probes are {top}; a contrast needs one at least on "
                "either side."
            )
        require_room(probes, dim)
        calls = probes + 2
        steps = max(1, budget // calls)

        def turns() -> Turns:
            c = np.zeros(dim)
            for step in count():
                z = rng.standard_normal((probes, dim))
                losses = yield Turn(candidates=c + sigma * z, center=c, step_size=sigma)
                v = contrast(z, losses, top) if guide == "contrast" else z[losses.argmin()]
                pair = yield Turn(
                    candidates=c + sigma * np.stack([v, -v]), center=c, step_size=sigma
                )
                if np.isfinite(pair).all():
                    slope = rises(pair[None], math.nan)[0] / sigma
                    c = c - lr * DECAYS[decay](step, steps) * slope * v

        self.symmetric = True
        super().__init__(turns(), population=calls, asks=2)


def contrast(probes: Population, losses: Losses, top: int) -> Vector:
    """Mean of the ``top`` best probes minus the mean of the others: ``(d,)``.

    Args:
        probes: ``(M, d)``.
        losses: ``(M,)``.
        top: How many count as best.
    """
    order = np.argsort(losses, kind="stable")
    difference: Vector = probes[order[:top]].mean(axis=0) - probes[order[top:]].mean(axis=0)
    return difference
