"""A table as dots with intervals, which pages draw by their own means."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan

from dfolora.report.spec import Column
from dfolora.report.tables import Line, Table

WHOLE = 100.0
"""Places are in percent of the width."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A row's mean and standard error."""

    line: Line
    text: str
    """The mean."""
    at: float
    """Where the mean is, in percent of the width."""
    left: float
    """Where the interval of one standard error to either side begins."""
    width: float
    """How wide it is; 0 of a single run."""


@dataclass(frozen=True, kw_only=True)
class Dots:
    """One column of a table."""

    title: str
    low: str
    """The smallest number, at the left."""
    high: str
    dots: Sequence[Dot]


def dots(table: Table) -> Iterator[Dots]:
    """A picture of the averages, or of each column but ratios; none where there are no numbers."""
    columns = [column for column in table.columns if column.measure.ratio_to is None]
    for column in [None] if table.averages else columns:
        if (drawn := _column(table, column)) is not None:
            yield drawn


def _column(table: Table, column: Column | None) -> Dots | None:
    known = [(line, *line.point(column)) for line in table.lines]
    points = [
        (line, mean, 0.0 if isnan(error) else error)
        for line, mean, error in known
        if not isnan(mean)
    ]
    if not points:
        return None
    low = min(mean - error for _, mean, error in points)
    high = max(mean + error for _, mean, error in points)
    scale, digits = WHOLE / (high - low or 1.0), 2 if column is None else column.measure.digits
    return Dots(
        title="Avg." if column is None else column.title,
        low=f"{low:,.{digits}f}",
        high=f"{high:,.{digits}f}",
        dots=[
            Dot(
                line=line,
                text=f"{mean:,.{digits}f}",
                at=scale * (mean - low),
                left=scale * (mean - error - low),
                width=scale * 2 * error,
            )
            for line, mean, error in points
        ],
    )
