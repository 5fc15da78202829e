"""A linear probe beside the prompt: what the head reads, mapped to what the class logits gain.

Letters: N examples, H numbers that the head reads, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dfolora.engine import SolvedReadout

BIAS = SolvedReadout(form="bias")
GRADIENT = 1e-8
"""The gradient's largest entry at a solution."""
MOST_STEPS = 1000
"""Of L-BFGS; it takes about a hundred."""
ROWS_AT_ONCE = 4096
"""That are in float64 at once."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """An affine map of hidden states (Alain and Bengio 2016) that is added to the class logits."""

    weight: Tensor
    """``(H, C)``, float64."""
    bias: Tensor
    """``(C,)``, float64."""

    def __call__(self, logits: Tensor, states: Tensor) -> Tensor:
        """Map ``(N, C)`` logits and ``(N, H)`` states to ``(N, C)``, float64."""
        added = [part.double() @ self.weight for part in states.split(ROWS_AT_ONCE)]
        return logits.double() + torch.cat(added) + self.bias

    @classmethod
    def fit(cls, logits: Tensor, states: Tensor, labels: Tensor, ridge: float) -> "Probe":
        """The one of least cross-entropy plus penalty, ``ridge / 2`` times the weight's squares.

        The weight is that of states about their mean, in units of their mean distance from it. The
        bias has no penalty, so that an infinite ridge leaves the best bias alone.

        Args:
            logits: The prompt's, ``(N, C)``.
            states: ``(N, H)``. If a number of these is not finite, the weight is 0.
            labels: ``(N,)``; each class needs one.
            ridge: Above 0.
        """
        logits, states, labels = logits.double(), states.double(), labels.long()
        bias = BIAS.solve(logits[None], labels).bias[0]
        weight = torch.zeros(states.shape[-1], logits.shape[-1], dtype=torch.float64)
        if not (logits.isfinite().all() and states.isfinite().all()):
            return cls(weight=weight, bias=bias)
        mean = states.mean(0)
        distance = (states - mean).square().sum(-1).mean().sqrt()
        scale = distance if distance > 0 else torch.ones_like(distance)
        features = (states - mean) / scale
        free = weight.requires_grad_(), bias.requires_grad_()
        solver = torch.optim.LBFGS(
            free, max_iter=MOST_STEPS, tolerance_grad=GRADIENT, tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def loss() -> Tensor:
            solver.zero_grad()
            value = cross_entropy(logits + features @ weight + bias, labels)
            value = value + ridge / 2 * weight.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            solver.step(loss)
        found, shift = weight.detach() / scale, bias.detach()
        return cls(weight=found, bias=shift - mean @ found)
