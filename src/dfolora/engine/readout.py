"""The readout that is solved inside an evaluation: an affine map of the class logits.

For given logits the map of least cross-entropy on the train set is a small convex problem. Solving
it for every candidate is variable projection (Golub and Pereyra 1973): a candidate is judged by
what no such map could have given, at no call.

Letters: P candidates, N examples, C classes, W words a class, F features of an example, M free
numbers of a map.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from dfolora.errors import UserError
from dfolora.validation import choice, positive

GRADIENT = 1e-10
"""The gradient's largest entry at a solution."""
MOST_STEPS = 500
"""Of Newton's method; it takes about ten, and hundreds where logits are of the order of 1,000."""
LARGEST = 1e6
"""Beyond such logits float64 holds no such gradient."""
HESSIAN_NUMBERS = 2**24
"""Of the candidates that are solved for at once."""
ARMIJO = 1e-4
DAMPING = 0.1
LEAST_DAMPING = 1e-12
"""A number that is added to the bias of all classes changes nothing, so there is no curvature."""


@dataclass(frozen=True, kw_only=True)
class Affine:
    """An affine map of class logits, or of each label word's, or one of each candidate."""

    weight: Tensor
    """Of an example's logits about their mean, ``(C W, C)`` or ``(P, C W, C)``, float64; it adds to
    the mean of a class's words."""
    bias: Tensor
    """``(C,)`` or ``(P, C)``, float64; a map's sum to 0."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Map ``(N, C W)``, or ``(P, N, C W)``, to C columns, float64."""
        logits = logits.double()
        return (
            _means(logits, self.bias.shape[-1])
            + _centred(logits) @ self.weight
            + self.bias.unsqueeze(-2)
        )

    def __getitem__(self, candidate: int) -> "Affine":
        """One candidate's map."""
        return Affine(weight=self.weight[candidate], bias=self.bias[candidate])


@dataclass(frozen=True, kw_only=True)
class SolvedReadout:
    """Which affine map is solved for: the one of least cross-entropy plus ridge penalty."""

    form: str = "plain"
    """``plain`` (the logits as they are), ``bias`` (a number a class), ``scale_bias`` (and a
    factor), ``words`` (and a weight of each label word), or ``linear`` (and a matrix)."""
    ridge: float = 0.0
    """``ridge / 2`` times the squares of bias and weight are added to the mean cross-entropy."""

    @property
    def plain(self) -> bool:
        """Whether the logits stay as they are."""
        return self.form == "plain"

    def check(self) -> None:
        """Raise UserError if such a map cannot be solved for."""
        choice(self.form, "readout.form", FORMS)
        # A factor without a penalty has no best value where the train set is separated.
        needed = self.form not in ("plain", "bias") or self.ridge != 0
        if needed and self.ridge != inf:
            positive(self.ridge, "readout.ridge")

    def check_classes(self, labels: Sequence[int], classes: int, *, rows: str = "train") -> None:
        """Raise UserError if rows lack a class, and nothing bounds that class's bias."""
        present = len({*labels})
        if self.form == "bias" and self.ridge == 0 and present < classes:
            raise UserError(
                f"The {rows} rows have {present} of {classes} classes, so that a bias of one "
                f"number a class has no best value; set readout.ridge=0.01, or readout=plain, or "
                f"for method=calibrated_prompt another calibration."
            )

    @property
    def apart(self) -> bool:
        """Whether the map is one of each label word's logit, not of the classes'."""
        return self.form == "words"

    def solve(self, logits: Tensor, labels: Tensor, *, words: int = 1) -> Affine:
        """The best map of each candidate's logits.

        Args:
            logits: ``(P, N, C W)`` of the train set, class by class. A candidate with one that is
                not finite, or beyond ``LARGEST``, has the map that changes nothing.
            labels: ``(N,)``; errors as of ``check_classes``.
            words: W.

        Returns:
            Maps whose gradient is at most ``GRADIENT`` in every entry, up to logits of about 100;
            ten times as much at 1,000, where rounding leaves no less; beyond, those reached after
            ``MOST_STEPS``.
        """
        candidates, _, columns = logits.shape
        classes = columns // words
        self.check_classes(labels.tolist(), classes)
        weight = torch.zeros(candidates, columns, classes, dtype=torch.float64)
        bias = torch.zeros(candidates, classes, dtype=torch.float64)
        if self.plain or self.ridge == inf:
            return Affine(weight=weight, bias=bias)
        logits, labels = logits.double().cpu(), labels.cpu()
        solvable = (logits.abs() <= LARGEST).flatten(1).all(-1).nonzero()[:, 0]
        largest = (columns + 1) * classes if self.form != "bias" else classes
        for some in solvable.split(max(1, HESSIAN_NUMBERS // largest**2)):
            known = logits[some]
            design = FORMS[self.form](known, classes)
            coefficients = _solve(_means(known, classes), labels, design, self.ridge)
            bias[some] = _centred(coefficients[:, -1])
            if self.form != "bias":
                weight[some] = coefficients[:, :-1]
        return Affine(weight=weight, bias=bias)


def check_readout(readout: object) -> None:
    """Raise UserError unless it is a ``SolvedReadout``, and one that can be solved for."""
    if not isinstance(readout, SolvedReadout):
        raise UserError(f"readout={readout!r} must be such as SolvedReadout(form='bias').")
    readout.check()


@dataclass(frozen=True, kw_only=True)
class _Design:
    """What a map is linear in: it adds ``features @ (ties @ free numbers)`` to the logits."""

    features: Tensor
    """``(P, N, F)``."""
    ties: Tensor
    """From free numbers to the coefficients of features in classes, ``(F C, M)``."""


def _of_bias(logits: Tensor, classes: int) -> _Design:
    return _Design(
        features=torch.ones_like(logits[..., :1]), ties=torch.eye(classes, dtype=torch.float64)
    )


def _of_linear(logits: Tensor, classes: int) -> _Design:
    features = torch.cat([_centred(logits), torch.ones_like(logits[..., :1])], -1)
    ties = torch.eye(features.shape[-1] * classes, dtype=torch.float64)
    return _Design(features=features, ties=ties)


def _of_words(logits: Tensor, classes: int) -> _Design:
    linear, columns = _of_linear(logits, classes), logits.shape[-1]
    word = torch.arange(columns)
    own = word * classes + word // (columns // classes)  # a word adds to its own class alone
    ties = torch.cat([linear.ties[:, own], linear.ties[:, columns * classes :]], -1)
    return _Design(features=linear.features, ties=ties)


def _of_scale_bias(logits: Tensor, classes: int) -> _Design:
    linear = _of_linear(logits, classes)
    factor = linear.ties[:, : classes**2 : classes + 1].sum(-1, keepdim=True)  # of the diagonal
    ties = torch.cat([factor, linear.ties[:, classes**2 :]], -1)
    return _Design(features=linear.features, ties=ties)


FORMS: Mapping[str, Callable[[Tensor, int], _Design]] = {
    "plain": _of_bias,
    "bias": _of_bias,
    "scale_bias": _of_scale_bias,
    "words": _of_words,
    "linear": _of_linear,
}


def _solve(logits: Tensor, labels: Tensor, design: _Design, ridge: float) -> Tensor:
    """The coefficients ``(P, F, C)``, by Newton steps damped by the gradient's norm.

    The damping vanishes with the gradient, so that steps converge quadratically; where saturated
    logits leave no curvature, it bounds a step. Each candidate halves its own steps until they
    descend.
    """
    features, ties = design.features, design.ties
    examples, classes = logits.shape[1:]
    gold = torch.nn.functional.one_hot(labels, classes).double()
    free = torch.zeros(len(logits), ties.shape[1], dtype=torch.float64)
    identity = torch.eye(ties.shape[1], dtype=torch.float64)

    def coefficients(free: Tensor) -> Tensor:
        return (free @ ties.T).unflatten(-1, (-1, classes))

    def loss(free: Tensor) -> tuple[Tensor, Tensor]:
        log_probabilities = (logits + features @ coefficients(free)).log_softmax(-1)
        penalty = ridge / 2 * free.square().sum(-1)
        return penalty - (gold * log_probabilities).sum((-1, -2)) / examples, log_probabilities

    value, log_probabilities = loss(free)
    for _ in range(MOST_STEPS):
        probabilities = log_probabilities.exp()
        slope = features.mT @ (probabilities - gold) / examples
        gradient = slope.flatten(1) @ ties + ridge * free
        if not len(free) or gradient.abs().max() <= GRADIENT:
            break
        spread = probabilities.diag_embed() - probabilities[..., None] * probabilities[..., None, :]
        curvature = torch.einsum("pnf,png,pncd->pfcgd", features, features, spread) / examples
        hessian = ties.T @ curvature.flatten(3).flatten(1, 2) @ ties
        damping = ridge + (DAMPING * gradient.norm(dim=-1)).clamp_min(LEAST_DAMPING)
        step = -torch.linalg.solve(hessian + damping[:, None, None] * identity, gradient)
        # A candidate's map is the same whoever is solved beside it.
        step[gradient.abs().amax(-1) <= GRADIENT] = 0.0
        free, value, log_probabilities = _descended(loss, free, value, gradient, step)
    return coefficients(free)


def _descended(
    loss: Callable[[Tensor], tuple[Tensor, Tensor]],
    free: Tensor,
    value: Tensor,
    gradient: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Each candidate's numbers after the longest of its halved steps that descends."""
    length = torch.ones_like(value)
    promised = ARMIJO * (gradient * step).sum(-1)
    slack = 1e-14 * (1 + value.abs())  # rounding of the loss, where steps are nearly over
    while True:
        after = free + length[:, None] * step
        reached, log_probabilities = loss(after)
        short = reached > value + length * promised + slack
        if not short.any():
            return after, reached, log_probabilities
        length = torch.where(short, length / 2, length)


def _means(logits: Tensor, classes: int) -> Tensor:
    """Means over the words of each class: ``(..., C W) -> (..., C)``."""
    return logits.unflatten(-1, (classes, -1)).mean(-1)


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(-1, keepdim=True)
