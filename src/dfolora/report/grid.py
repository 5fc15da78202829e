"""A table of texts, which every format is written from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Texts in rows and columns."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: Sequence[str] = ()
    """Paragraphs."""
    blocks: Mapping[int, str] = field(default_factory=dict)
    """The heading of each block of rows, which may be empty, by the number of its first row."""
    leads: Sequence[Sequence[str]] = ()
    """How each text of each row stands in its block, as of ``Table.lead``; none to mark no text."""
