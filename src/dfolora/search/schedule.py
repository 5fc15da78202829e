"""Schedules: which block's turn it is.

An order of turns is a generator that is sent each generation as it ended, so it may depend on the
losses; those that do not ignore it. It is a function of what it is sent and of its random stream.

Letters: L blocks.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import ClassVar, Protocol, TypeAlias

import numpy as np

from dfolora.errors import UserError
from dfolora.search.generation import Generation
from dfolora.validation import positive, share, whole

Order: TypeAlias = Generator[int, Generation, None]
"""``generation = yield block``."""


def fixed(blocks: Iterable[int]) -> Order:
    """These turns, whatever the losses."""
    for block in blocks:  # noqa: UP028, for most iterators cannot be sent anything
        yield block


class Schedule(Protocol):
    """An order of turns, configured."""

    @property
    def informed(self) -> bool:
        """Whether it needs the loss of the whole solution after each turn."""
        ...

    def check(self, blocks: int) -> None:
        """Raise UserError if it cannot be had with so many blocks."""
        ...

    def weights(self, blocks: int) -> Sequence[float]:
        """The turns that each block may expect, in proportion: ``(L,)``; 0 for none ever."""
        ...

    def least(self, blocks: int) -> int:
        """The number of turns that it takes at least."""
        ...

    def order(self, blocks: int, *, turns: int, rng: np.random.Generator) -> Order:
        """The turns.

        Args:
            blocks: L.
            turns: Those that the budget pays, nominally.
            rng: The schedule's own stream.
        """
        ...


def _check_number(value: int, where: str, blocks: int) -> None:
    whole(value, where, least=1)
    if value > blocks:
        raise UserError(
            f"{where}={value} is more than the {blocks} blocks there are; choose at most {blocks}."
        )


class _Even:
    """What most schedules have in common: any number of blocks, all alike."""

    informed: ClassVar[bool] = False

    def check(self, blocks: int) -> None:
        """Any number will do."""

    def weights(self, blocks: int) -> Sequence[float]:
        """All alike."""
        return [1] * blocks

    def least(self, blocks: int) -> int:
        """One turn is enough."""
        return 1


@dataclass(frozen=True, kw_only=True)
class RoundRobin(_Even):
    """Ascending order, again and again (Jin, Liu, Tan 2024)."""

    def order(self, blocks: int, *, turns: int, rng: np.random.Generator) -> Order:
        """The turns."""
        return fixed(cycle(range(blocks)))


@dataclass(frozen=True, kw_only=True)
class WholeRounds(_Even):
    """Ascending order in whole rounds; the rest of the budget is not spent.

    As the code of Jin, Liu, Tan 2024 has it.
    """

    def least(self, blocks: int) -> int:
        """A round."""
        return blocks

    def order(self, blocks: int, *, turns: int, rng: np.random.Generator) -> Order:
        """The turns."""
        return fixed(block for _ in range(turns // blocks) for block in range(blocks))


@dataclass(frozen=True, kw_only=True)
class LastK(_Even):
    """Ascending order among the last k blocks; the others stay as they are."""

    k: int = 1

    def check(self, blocks: int) -> None:
        """No more than there are."""
        _check_number(self.k, "schedule.k", blocks)

    def weights(self, blocks: int) -> Sequence[float]:
        """Those of the last k alike."""
        return [0] * (blocks - self.k) + [1] * self.k

    def order(self, blocks: int, *, turns: int, rng: np.random.Generator) -> Order:
        """The turns."""
        return fixed(cycle(range(blocks - self.k, blocks)))


@dataclass(frozen=True, kw_only=True)
class Late(_Even):
    """Turns in proportion to ``growth^l``: the later a block, the more of them.

    The block that is furthest behind its share has the turn, the first of equals. With a growth of
    1 this is ``RoundRobin``.
    """

    growth: float = 2.0

    def check(self, blocks: int) -> None:
        """A growth below 1 is early."""
        if positive(self.growth, "schedule.growth") < 1:
            raise UserError(
                f"schedule.growth={self.growth} is below 1, so early blocks would have most turns; "
                f"choose 1 (all alike) or more."
            )

    def weights(self, blocks: int) -> Sequence[float]:
        """``growth^l``, the last one being 1."""
        return [self.growth ** (block + 1 - blocks) for block in range(blocks)]

    def order(self, blocks: int, *, turns: int, rng: np.random.Generator) -> Order:
        """The turns."""
        weights = np.array(self.weights(blocks))
        behind = np.zeros(blocks)
        while True:
            behind += weights
            block = int(behind.argmax())
            behind[block] -= weights.sum()
            yield block


@dataclass(frozen=True, kw_only=True)
class Spread(_Even):
    """The turn goes to the block whose candidates differed most in loss in its last turn.

    Over candidates ``z + sigma u`` with normal u, the losses' standard deviation is about
    ``sigma |gradient|``, so divided by the step it says at no call which block matters. A turn of
    one candidate is taken together with the block's turn before. Each block first has a turn, or
    two of one candidate. A share ``explore`` of later turns goes to blocks drawn at random, for
    what was flat need not stay so.
    """

    explore: float = 0.1

    def check(self, blocks: int) -> None:
        """A share."""
        share(self.explore, "schedule.explore")

    def order(self, blocks: int, *, turns: int, rng: np.random.Generator) -> Order:
        """The turns."""
        slopes = np.full(blocks, np.inf)
        known = [np.empty(0)] * blocks
        while True:
            if np.isfinite(slopes).all() and rng.random() < self.explore:
                block = int(rng.integers(blocks))
            else:
                block = int(slopes.argmax())
            generation = yield block
            losses = generation.losses[np.isfinite(generation.losses)]
            step = generation.step_size if np.isfinite(generation.step_size) else 1.0
            known[block] = np.concatenate([known[block], losses])[-max(2, len(losses)) :]
            if not len(losses):
                slopes[block] = 0.0
            elif len(known[block]) > 1:
                slopes[block] = known[block].std() / step


@dataclass(frozen=True, kw_only=True)
class Bandit(_Even):
    """Exp3 over blocks, rewarded by how much the loss of the whole fell in a turn, per candidate.

    Auer, Cesa-Bianchi, Freund, Schapire, "The Nonstochastic Multiarmed Bandit Problem", 2002,
    Figure 1: it assumes nothing of the rewards, which fade as a search goes on. They must lie in
    [0, 1], so a turn's is the share of all turns so far whose fall was lower, equal ones
    counted half.
    """

    explore: float = 0.1
    """Gamma: the share of turns drawn evenly, and the rate of learning."""

    informed: ClassVar[bool] = True

    def check(self, blocks: int) -> None:
        """A share that is not 0, with which nothing would be learned."""
        positive(share(self.explore, "schedule.explore"), "schedule.explore")

    def order(self, blocks: int, *, turns: int, rng: np.random.Generator) -> Order:
        """The turns."""
        gains = np.zeros(blocks)  # logarithms of Exp3's weights
        falls: list[float] = []
        loss = np.nan
        while True:
            weights = np.exp(gains - gains.max())
            chances = (1 - self.explore) * weights / weights.sum() + self.explore / blocks
            block = int(rng.choice(blocks, p=chances))
            generation = yield block
            if np.isfinite(loss):  # it is not before the first turn
                falls.append((loss - generation.loss) / len(generation.losses))
                lower, equal = np.less(falls, falls[-1]).sum(), np.equal(falls, falls[-1]).sum()
                reward = (lower + equal / 2) / len(falls)
                gains[block] += self.explore * reward / chances[block] / blocks
            loss = generation.loss


@dataclass(frozen=True, kw_only=True)
class Lisa(_Even):
    """Some blocks at a time, drawn anew every few rounds.

    After LISA (Pan et al., "Layerwise Importance Sampled AdamW", 2024), which trains so by
    gradients: every ``interval`` rounds ``active`` blocks are drawn evenly, without replacement,
    and take turns in the order drawn. With all blocks and an interval of 1 these are rounds in
    random order.
    """

    interval: int = 20
    """Rounds, of a turn for each active block, between two draws."""
    active: int = 2

    def check(self, blocks: int) -> None:
        """No more than there are."""
        whole(self.interval, "schedule.interval", least=1)
        _check_number(self.active, "schedule.active", blocks)

    def order(self, blocks: int, *, turns: int, rng: np.random.Generator) -> Order:
        """The turns."""
        while True:
            drawn = rng.permutation(blocks)[: self.active].tolist()
            yield from fixed(drawn * self.interval)
