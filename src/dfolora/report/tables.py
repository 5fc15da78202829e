"""Builds tables from the store's data frame of runs; needs no model and no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from math import hypot, isnan
from typing import Any

import pandas as pd

from dfolora.report.captions import FACTS, caption
from dfolora.report.cells import (
    HOLE,
    MIXED,
    NOT_APPLICABLE,
    Cell,
    RowRuns,
    cells,
    constant_cell,
    item_runs,
    row_runs,
)
from dfolora.report.grid import Grid
from dfolora.report.significance import Verdict, judge
from dfolora.report.spec import Column, TableSpec

LEGEND = "Bold: the best score of a group; underlined: within one standard error of it."


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a finished table."""

    label: str
    group: str = ""
    """The group's label; empty if the table has no groups."""
    section: str = ""
    """The heading that it stands below; empty if there is none."""
    searched: str
    """How many numbers the method searched."""
    stored: str
    """How many parameters it adds to the model."""
    cells: Mapping[Column, Cell]
    constant: bool = False
    """Whether it is a constant predictor."""

    @property
    def average(self) -> float:
        """Unweighted mean of the tasks' means; NaN if one is missing."""
        means = [cell.mean for column, cell in self.cells.items() if column.measure.averaged]
        return float(pd.Series(means, dtype=float).mean(skipna=False))

    @property
    def average_error(self) -> float:
        """Standard error of the average, tasks being independent; NaN if one is unknown."""
        errors = [cell.error for column, cell in self.cells.items() if column.measure.averaged]
        return hypot(*errors) / max(1, len(errors))

    def point(self, column: Column | None) -> tuple[float, float]:
        """Mean and standard error in a column; None for the average."""
        if column is None:
            return self.average, self.average_error
        return self.cells[column].mean, self.cells[column].error

    @property
    def block(self) -> tuple[str, str, bool]:
        """What it has in common with the rows that it is compared with."""
        return self.group, self.section, self.constant

    @property
    def mixed(self) -> bool:
        """Whether its average is over runs of different code."""
        averaged = (cell.sources for column, cell in self.cells.items() if column.measure.averaged)
        return len(frozenset[str]().union(*averaged)) > 1


@dataclass(frozen=True, kw_only=True)
class Table:
    """A finished table."""

    spec: TableSpec
    lines: Sequence[Line]
    columns: Sequence[Column]
    caption: Sequence[str]
    """Paragraphs."""
    verdicts: Mapping[str, Sequence[Verdict]]
    """The results of ``spec.compare``: the row tested against, and what was found of the others."""
    runs: pd.DataFrame
    """All runs that its cells link to, including unfinished and failed ones."""

    @property
    def averages(self) -> bool:
        """Whether it has a column of averages."""
        return any(column.measure.averaged for column in self.columns)

    @property
    def blocks(self) -> Iterator[tuple[str, Sequence[Line]]]:
        """Rows that stand together, below their heading, which may be empty."""
        for (group, section, _), lines in groupby(self.lines, lambda line: line.block):
            named = (self.spec.group_title(group), section) if section else ()
            yield ": ".join(filter(None, named)), [*lines]

    def lead(self, line: Line, column: Column | None) -> str:
        """How a row stands among its block's in a column; None for the average.

        Returns:
            ``best``, or ``near`` within one standard error of the best; else an empty text.
        """
        scored = column is None or column.measure.is_score
        points = [each.point(column) for each in self.lines if each.block == line.block]
        known = [(mean, error) for mean, error in points if not isnan(mean)]
        if not scored or line.constant or len(known) < 2:
            return ""
        (best, error), (mean, _) = max(known), line.point(column)
        return "best" if mean == best else "near" if mean >= best - error else ""

    def leads(self, line: Line) -> Sequence[str]:
        """How a row stands in each of its columns of numbers, the average included."""
        averages = [None] if self.averages else []
        return [self.lead(line, column) for column in (*line.cells, *averages)]

    @property
    def paragraphs(self) -> Sequence[str]:
        """The caption, and what marks of scores mean if some are marked."""
        marked = any(any(self.leads(line)) for line in self.lines)
        return [*self.caption, *([LEGEND] if marked else [])]

    def verdicts_of(self, line: Line) -> Mapping[str, Verdict]:
        """What the tests say of a line, by the row that it is tested against."""
        mine = line.group, line.label
        return {
            against: verdict
            for against, family in self.verdicts.items()
            for verdict in family
            if (verdict.group, verdict.label) == mine
        }

    def average(self, line: Line) -> str:
        """A line's average, marked if it differs significantly by the first comparison."""
        if pd.isna(line.average):
            averaged = [cell for column, cell in line.cells.items() if column.measure.averaged]
            return HOLE if all(cell.applies for cell in averaged) else NOT_APPLICABLE
        verdict = self.verdicts_of(line).get(next(iter(self.spec.compare), ""))
        return f"{line.average:.2f}{verdict.mark if verdict else ''}{MIXED if line.mixed else ''}"

    def grid(self) -> Grid:
        """The table as rows of text."""
        grouped = self.spec.groups
        header = [
            *([grouped.title] if grouped else []),
            "Method",
            "#Params",
            *(column.title for column in self.columns),
            *(["Avg."] if self.averages else []),
        ]
        rows = [
            [
                *([self.spec.group_title(line.group)] if grouped else []),
                line.label,
                line.searched,
                *map(str, line.cells.values()),
                *([self.average(line)] if self.averages else []),
            ]
            for line in self.lines
        ]
        starts = accumulate((len(lines) for _, lines in self.blocks), initial=0)
        beside = [""] * (3 if grouped else 2)
        return Grid(
            title=self.spec.title,
            header=header,
            rows=rows,
            caption=self.paragraphs,
            blocks={
                start: heading for start, (heading, _) in zip(starts, self.blocks, strict=False)
            },
            leads=[[*beside, *self.leads(line)] for line in self.lines],
        )

    def holes(self) -> Iterator[str]:
        """Each cell without a number, and why."""
        for line in self.lines:
            for column, cell in line.cells.items():
                if cell.notes:
                    place = ", ".join(filter(None, [line.group, line.label, column.title]))
                    yield f"{place}: {'; '.join(cell.notes)}"

    def frame(self) -> pd.DataFrame:
        """One row a cell and one an average; seeds' scores kept, numbers missing in holes."""
        return pd.DataFrame(row for line in self.lines for row in self._records(line))

    def _records(self, line: Line) -> Iterator[Mapping[str, Any]]:
        shared = {
            "table": self.spec.name,
            "profile": self.spec.profile,
            "group": line.group,
            "method": line.label,
            "n_params": line.searched.replace(",", ""),
            "n_stored": line.stored.replace(",", ""),
        }
        for column, cell in line.cells.items():
            yield shared | {
                "task": column.task or line.group,
                "metric": column.measure.metric + (" ratio" if column.measure.ratio_to else ""),
                "mean": cell.mean,
                "std": cell.std,
                "runs": len(cell.scores),
                "missing_seeds": " ".join(cell.missing),
                "scores": " ".join(f"{seed}:{score:.4f}" for seed, score in cell.scores.items()),
                "commits": " ".join(cell.commits),
                "run_ids": " ".join(f"{seed}:{run}" for seed, run in (cell.runs or {}).items()),
                "notes": "; ".join(cell.notes),
            }
        if self.averages:
            averaged = {k: cell for k, cell in line.cells.items() if k.measure.averaged}
            notes = [
                f"{verdict.mark} against {against}: {verdict.finding}".lstrip()
                for against, verdict in self.verdicts_of(line).items()
            ]
            yield shared | {
                "task": "Avg.",
                "metric": next(iter(averaged)).measure.metric,
                "mean": line.average,
                "runs": sum(len(cell.scores) for cell in averaged.values()),
                "notes": "; ".join(notes),
            }


def build_table(runs: pd.DataFrame, spec: TableSpec) -> Table:
    """Build a table from runs.

    Args:
        runs: As ``dfolora.record.Store.runs`` gives them.
        spec: What to show.
    """
    runs = item_runs(runs, spec)
    # Only the columns that cells need: every other one makes each selection slower.
    told = runs[[name for name in runs if not name.startswith("params.") or name in FACTS.values()]]
    rows = [row_runs(told, row) for row in spec.all_rows]
    counted = pd.concat([row.counted for row in rows])
    columns = [
        column
        for column in spec.columns
        if not column.measure.optional or _measured(counted, column)
    ]
    lines = [
        Line(
            label=row.label,
            group=row.group,
            section=spec.section(row.label),
            searched=_numbers(mine.counted, "metrics.params/searched"),
            stored=_numbers(mine.counted, "metrics.params/stored"),
            cells=cells(mine, columns, spec.seeds),
        )
        for row, mine in zip(spec.all_rows, rows, strict=True)
    ]
    lines = [*_constants(counted, columns, spec), *_with_ratios(lines)]
    verdicts = _verdicts(lines, spec)
    return Table(
        spec=spec,
        lines=lines,
        columns=columns,
        caption=caption(
            counted,
            spec,
            verdicts,
            mixed=any(line.mixed or any(c.mixed for c in line.cells.values()) for line in lines),
        ),
        verdicts=verdicts,
        runs=_shown(runs, rows),
    )


def _measured(runs: pd.DataFrame, column: Column) -> bool:
    metric = f"metrics.{column.measure.metric}"
    return metric in runs and bool(runs[metric].notna().any())


def _shown(runs: pd.DataFrame, rows: Sequence[RowRuns]) -> pd.DataFrame:
    mine = pd.concat([part for row in rows for part in (row.counted, row.rest)])
    return runs[runs["run_id"].isin(mine["run_id"])]


def _constants(runs: pd.DataFrame, columns: Sequence[Column], spec: TableSpec) -> Iterator[Line]:
    for name, label in spec.constants.items():
        told = {column: constant_cell(runs, column, name) for column in columns}
        if any(cell.applies for cell in told.values()):
            yield Line(label=label, searched="0", stored="0", cells=told, constant=True)


def _with_ratios(lines: Sequence[Line]) -> Iterator[Line]:
    """Ratios to another row of the same group, seed by seed."""
    by_label = {(line.group, line.label): line for line in lines}
    for line in lines:
        shown = dict(line.cells)
        for column, cell in line.cells.items():
            if column.measure.ratio_to is not None:
                base = by_label[line.group, column.measure.ratio_to].cells[column]
                shown[column] = _ratio(cell, base)
        yield replace(line, cells=shown)


def _ratio(cell: Cell, base: Cell) -> Cell:
    if cell.hole or base.hole or set(cell.scores) != set(base.scores):
        return replace(cell, scores={}, missing=[*cell.scores, *cell.missing])
    ratios = {seed: score / base.scores[seed] for seed, score in cell.scores.items()}
    return replace(cell, scores=ratios)


def _verdicts(lines: Sequence[Line], spec: TableSpec) -> Mapping[str, Sequence[Verdict]]:
    averaged = {
        (line.group, line.label): [c.mean for k, c in line.cells.items() if k.measure.averaged]
        for line in lines
    }
    groups = dict.fromkeys(row.group for row in spec.all_rows)
    return {
        against: [
            verdict
            for group in groups
            for verdict in judge(
                {label: averaged[group, label] for label in tested},
                averaged[group, against],
                group=group,
            )
        ]
        for against, tested in spec.compare.items()
    }


def _numbers(runs: pd.DataFrame, metric: str) -> str:
    if runs.empty:
        return HOLE
    numbers = [f"{int(n):,}" for n in sorted(runs[metric].dropna().unique())]
    return " / ".join(numbers) if len(numbers) < 3 else f"{numbers[0]} to {numbers[-1]}"
