"""Compares the paper's numbers with ours: the difference, and whether it exceeds noise."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import hypot, isnan, nan, sqrt
from pathlib import Path

import pandas as pd

from dfolora.report.cells import HOLE
from dfolora.report.grid import Grid
from dfolora.report.spec import Column
from dfolora.report.tables import Line, Table

Key = tuple[str, str, str, str]
"""Group, such as the model (empty without groups), method, task, metric."""
PUBLISHED_RUNS = 3
"""The number of runs that a published mean is assumed to have; the paper does not say."""
AVERAGE = "Avg."


@dataclass(frozen=True, kw_only=True)
class Number:
    """A published number."""

    mean: float
    std: float = nan
    """NaN if none is given."""
    corrected: float = nan
    """The right number, where the printed one is known to be wrong; else NaN."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Published:
    """The numbers of one table or figure."""

    numbers: Mapping[Key, Number] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, name: str) -> "Published":
        """Read ``<name>.csv``; empty if there is no such file.

        Args:
            folder: Has one file for each table.
            name: The table's name.
        """
        path = folder / f"{name}.csv"
        if not path.exists():
            return cls()
        texts = ["group", "method", "task", "metric", "note"]
        frame = pd.read_csv(path, dtype=dict.fromkeys(texts, str))
        frame[texts] = frame[texts].fillna("")
        return cls(
            numbers={
                (row.group, row.method, row.task, row.metric): Number(
                    mean=row.mean, std=row.std, corrected=row.corrected, note=row.note
                )
                for row in frame.itertuples(index=False)
            }
        )

    def of(self, line: Line, column: Column) -> Number | None:
        """A cell's published number; for a ratio, the ratio of the two rows' numbers."""
        place, measure = (column.task or "", column.measure.metric), column.measure
        own = self.numbers.get((line.group, line.label, *place))
        if measure.ratio_to is None or own is None:
            return own
        base = self.numbers.get((line.group, measure.ratio_to, *place))
        return None if base is None else Number(mean=own.mean / base.mean)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One number of ours beside the paper's."""

    line: Line
    title: str
    """The column's title."""
    mean: float
    """Our mean; NaN for a hole."""
    std: float
    digits: int
    runs: int
    published: Number
    constant: float
    """The best constant predictor's score; NaN where none applies."""

    @property
    def difference(self) -> float:
        """Our mean minus the paper's, or minus the corrected number if there is one."""
        corrected = self.published.corrected
        return self.mean - (self.published.mean if isnan(corrected) else corrected)

    @property
    def agrees(self) -> bool | None:
        """Whether the difference is at most two standard errors; None if unknown."""
        if isnan(self.difference) or isnan(self.std) or isnan(self.published.std):
            return None
        error = hypot(self.std / sqrt(self.runs), self.published.std / sqrt(PUBLISHED_RUNS))
        return abs(self.difference) <= 2 * error

    @property
    def verdict(self) -> str:
        """The comparison in words; it names a constant predictor that does as well."""
        said = {True: "agrees", False: "differs", None: ""}[self.agrees]
        shown = [value for value in (self.mean, self.published.mean) if not isnan(value)]
        if shown and min(shown) <= self.constant:
            said = f"{said}; constant {self.constant:.2f}".removeprefix("; ")
        return said


def beside(table: Table, published: Published) -> Iterator[Beside]:
    """Yield every published number of the table beside ours, in the table's order.

    Args:
        table: Ours.
        published: The paper's.
    """
    constants = [line for line in table.lines if line.constant]
    for line in table.lines:
        for column, cell in line.cells.items():
            number = published.of(line, column)
            if number is not None:
                means = (each.cells[column].mean for each in constants)
                yield Beside(
                    line=line, title=column.title, mean=cell.mean, std=cell.std,
                    digits=column.measure.digits, runs=len(cell.scores), published=number,
                    constant=max(means, key=_or_least, default=nan),
                )  # fmt: skip
        key = (line.group, line.label, AVERAGE, "")
        if key in published.numbers:
            yield Beside(
                line=line, title=AVERAGE, mean=line.average, std=nan, digits=2, runs=0,
                published=published.numbers[key], constant=nan,
            )  # fmt: skip


def _or_least(value: float) -> float:
    return float("-inf") if isnan(value) else value


def comparison(table: Table, published: Published) -> Grid | None:
    """All published numbers beside ours as a grid; None if there are none.

    Args:
        table: Ours.
        published: The paper's.
    """
    found = list(beside(table, published))
    if not found:
        return None
    grouped = table.spec.groups
    notes = list(dict.fromkeys(each.published.note for each in found if each.published.note))
    return Grid(
        title="Beside the paper",
        header=[
            *([grouped.title] if grouped else []),
            "Method", "Column", "Ours", "Paper", "Difference", "Verdict", "Note",
        ],
        rows=[
            [
                *([table.spec.group_title(each.line.group)] if grouped else []),
                each.line.label,
                each.title,
                _spread(each.mean, each.std, each.digits),
                _printed(each.published, each.digits),
                "" if isnan(each.difference) else f"{each.difference:+,.{each.digits}f}",
                each.verdict,
                f"[{notes.index(each.published.note) + 1}]" if each.published.note else "",
            ]
            for each in found
        ],
        caption=[
                "Agrees: |ours - paper| <= 2 sqrt(s^2 / n + s_p^2 / 3), with ours of n runs and "
                "the paper's, whose number of runs is not stated, taken to be of 3; no verdict "
                "where a spread is missing. Constant: what a constant predictor scores, where that "
                "is not less than the lower of the two. A corrected number, in brackets, is what "
                "the difference is taken from.",
                *(f"[{number}] {note}." for number, note in enumerate(notes, 1)),
        ],
    )  # fmt: skip


def _spread(mean: float, std: float, digits: int) -> str:
    if isnan(mean):
        return HOLE
    return f"{mean:,.{digits}f}" + ("" if isnan(std) else f" ({std:,.{digits}f})")


def _printed(number: Number, digits: int) -> str:
    corrected = "" if isnan(number.corrected) else f" [{number.corrected:.{digits}f}]"
    return _spread(number.mean, number.std, digits) + corrected
