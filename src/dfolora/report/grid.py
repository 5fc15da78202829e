"""A table of texts: what every format starts from."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Texts in rows and columns."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: Sequence[str] = ()
    """Paragraphs."""
