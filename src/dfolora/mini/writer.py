"""Random choice of words and names; some pairings are kept for test rows alone."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from dfolora.seeding import stream

T = TypeVar("T")

BLOCK = 4096
ONE_IN = 5
"""Of all pairings, one in so many is held out."""

STARTS = (
    "Bel", "Tor", "Kes", "Mar", "Ol", "Dun", "Fen", "Gal", "Har", "Is", "Jor", "Lin", "Nor", "Pel",
    "Ros", "Sul", "Tam", "Ul", "Ver", "Wen", "Ab", "Cor", "Dri", "El", "Gri", "Hol", "Kra", "Lum",
    "Mil", "Ost", "Pra", "Quin", "Ril", "Ska", "Tri", "Vol", "Wal", "Yor", "Zan", "Bro",
)  # fmt: skip
ENDS = (
    "mar", "vik", "ta", "den", "lo", "by", "wick", "ra", "sen", "stead", "mo", "gard", "ley", "na",
    "ford", "dal", "ker", "ben", "sio", "tun", "bach", "por", "ham", "nis", "cot", "ver", "lund",
    "esk", "oria", "pol",
)  # fmt: skip


class Writer:
    """Draws from one named stream.

    Args:
        name: The stream's name; the same name draws the same.
        held_out: Whether pairings are drawn from those held out, or from all others.
        world: Another number draws everything anew.
    """

    def __init__(self, name: str, *, held_out: bool = False, world: int = 0) -> None:
        self._uniform = _uniform(stream(world, f"mini/{name}"))
        self._held_out = held_out

    def number(self, stop: int) -> int:
        """One of ``0 .. stop - 1``."""
        return int(next(self._uniform) * stop)

    def chance(self, probability: float) -> bool:
        """True with that probability."""
        return next(self._uniform) < probability

    def one(self, of: Sequence[T]) -> T:
        """Any of them, all alike."""
        return of[self.number(len(of))]

    def often(self, of: Sequence[T]) -> T:
        """Any of them, the first most often and the n-th 1/n times as often (Zipf)."""
        shares = 1 / np.arange(1, len(of) + 1)
        return of[int(np.searchsorted(np.cumsum(shares / shares.sum()), next(self._uniform)))]

    def several(self, of: Sequence[T], count: int) -> list[T]:
        """``count`` different ones, in random order."""
        left = list(of)
        return [left.pop(self.number(len(left))) for _ in range(count)]

    def allows(self, *numbers: int) -> bool:
        """Whether words of these numbers may stand together."""
        return (sum(numbers) % ONE_IN == 0) == self._held_out

    def pair(self, firsts: Sequence[str], seconds: Sequence[str]) -> tuple[str, str]:
        """A word of each, in a pairing that is allowed."""
        while True:
            first, second = self.number(len(firsts)), self.number(len(seconds))
            if self.allows(first, second):
                return firsts[first], seconds[second]

    def name(self) -> str:
        """An invented name for a place, a person or a firm."""
        return "".join(self.pair(STARTS, ENDS))


def _uniform(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(BLOCK).tolist()
