"""What candidates cost a search, in calls.

A call is a pass of one candidate through the whole model, over all rows of the train set. What does
less of this costs a fraction, kept exact, so that a search ends where no candidate is left to pay.

Letters: P candidates, L blocks.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Protocol

from dfolora.engine import Shape, Work, work_of


class Price(Protocol):
    """The calls that candidates cost; told which were evaluated, for some prices depend on it."""

    def affords(self, calls: Fraction, block: int) -> int:
        """The most candidates for this block that so many calls pay for."""
        ...

    def pay(self, block: int, candidates: int) -> Fraction:
        """The calls that these P candidates cost, which now are evaluated."""
        ...

    def usual(self, block: int, population: int) -> Fraction:
        """The calls of one of P candidates for this block, as far as it can be foreseen."""
        ...


class PerRow:
    """All candidates cost the same: the share of the train rows that they are evaluated on.

    Args:
        share: Of the rows; 1 is a call a candidate.
    """

    def __init__(self, share: Fraction = Fraction(1)) -> None:
        self._share = share

    def affords(self, calls: Fraction, block: int) -> int:
        return int(calls / self._share)

    def pay(self, block: int, candidates: int) -> Fraction:
        return candidates * self._share

    def usual(self, block: int, population: int) -> Fraction:
        return self._share


class PerFlop:
    """Candidates cost the arithmetic that the engine does for them, as a share of a whole pass.

    The later a block's first layer, the less of the model its candidates pass. What is the same for
    a population is done once; that includes passing the layers between the last block that had a
    turn and this one, or if this one is earlier all layers below it.

    Args:
        shape: Of the model.
        lengths: Tokens of each example that go through the model.
        first_layers: The first layer that each block's candidates change: ``(L,)``.
        entering: Whether they change what enters it.
    """

    def __init__(
        self,
        shape: Shape,
        lengths: Sequence[int],
        first_layers: Sequence[int],
        *,
        entering: bool = False,
    ) -> None:
        self._first = first_layers
        self._reached = 0
        self._work_of = partial(work_of, shape, lengths=lengths, entering=entering)
        self._whole = self._work_of(0, advanced=0).of(1)

    def affords(self, calls: Fraction, block: int) -> int:
        work = self._next(block)
        return max(0, (calls * self._whole - work.once) // work.each)

    def pay(self, block: int, candidates: int) -> Fraction:
        work = self._next(block)
        self._reached = self._first[block]
        return Fraction(work.of(candidates), self._whole)

    def usual(self, block: int, population: int) -> Fraction:
        work = self._work_of(self._first[block], advanced=0)
        return Fraction(work.of(population), self._whole * population)

    def _next(self, block: int) -> Work:
        layer = self._first[block]
        passed = layer - self._reached if layer >= self._reached else layer
        return self._work_of(layer, advanced=passed)
