"""Tables in Markdown."""

from collections.abc import Iterable, Iterator
from itertools import chain


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table: a line of column names, then one a row."""
    return "\n".join(lines(head, rows))


def lines(head: Iterable[object], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """A table's lines, each as soon as its row is there."""
    names = list(head)
    for line in chain[Iterable[object]]([names, ["---"] * len(names)], rows):
        yield "| " + " | ".join(map(str, line)) + " |"
