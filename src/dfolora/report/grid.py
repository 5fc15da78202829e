"""A table of texts, which every format is written from."""

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
