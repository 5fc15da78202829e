"""Finished runs to tables. Reads the store's data frame alone; knows no model and no torch.

A cell is filled only when it has a run for every seed; anything else is shown as a hole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

HOLE = "—"
NOT_APPLICABLE = "n/a"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method of a table."""

    label: str
    where: Mapping[str, str]
    """Tags that its runs have."""
    group: str | None = None
    """The value of the tag that the table is grouped by."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A table that repeats its rows for each value of a tag."""

    tag: str
    title: str
    """Of the column that says which."""
    values: Sequence[str]

    def rows(self, rows: Sequence[Row]) -> Sequence[Row]:
        """All rows of the first group, then of the second, ..."""
        return [
            Row(label=row.label, where={**row.where, self.tag: str(value)}, group=str(value))
            for value in self.values
            for row in rows
        ]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A metric of a task."""

    task: str
    metric: str
    """``score`` (by the task's own metric) or ``accuracy``."""
    title: str
    averaged: bool
    """Whether it counts in the average."""


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """What a table shows."""

    name: str
    """Also the item that runs were made for."""
    title: str
    tasks: Mapping[str, str]
    """Task name to column title."""
    accuracy_beside: Mapping[str, str]
    """Of tasks with another metric: task name to the title of a column for its accuracy."""
    rows: Sequence[Row]
    """Of one group, where there are groups."""
    constants: Mapping[str, str]
    """Constant predictors, metric name to label."""
    profile: str
    seeds: Sequence[int]
    note: str
    groups: Groups | None = None
    """What the rows are repeated for."""

    @property
    def columns(self) -> Sequence[Column]:
        """All columns of numbers, from left to right."""
        columns = []
        for task, title in self.tasks.items():
            columns.append(Column(task=task, metric="score", title=title, averaged=True))
            if task in self.accuracy_beside:
                title = self.accuracy_beside[task]
                columns.append(Column(task=task, metric="accuracy", title=title, averaged=False))
        return columns


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one task, by seed."""

    scores: Mapping[str, float]
    """In percent, by the run's seed."""
    missing: Sequence[str] = ()
    """Seeds without a finished run."""
    applies: bool = True
    """Whether the method can have a score here at all."""

    @property
    def mean(self) -> float:
        """Mean over seeds; nan for a hole."""
        return float("nan") if self.missing else float(pd.Series(self.scores).mean())

    @property
    def std(self) -> float:
        """Sample standard deviation (ddof 1); nan for a hole or a single run."""
        return float("nan") if self.missing else float(pd.Series(self.scores).std(ddof=1))

    def __str__(self) -> str:
        if not self.applies:
            return NOT_APPLICABLE
        if self.missing:
            wanted = len(self.scores) + len(self.missing)
            return f"{HOLE} ({len(self.scores)}/{wanted})" if self.scores else HOLE
        spread = "" if pd.isna(self.std) else f" ({self.std:.2f})"
        return f"{self.mean:.2f}{spread}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a finished table."""

    label: str
    group: str
    """What it is a row of; empty where nothing is grouped."""
    searched: str
    """Numbers that the method searched."""
    stored: str
    """Parameters that it adds to the model."""
    cells: Mapping[Column, Cell]

    @property
    def average(self) -> str:
        """Unweighted mean of the tasks' means; a hole if one is missing."""
        means = pd.Series([cell.mean for column, cell in self.cells.items() if column.averaged])
        return HOLE if means.isna().any() else f"{means.mean():.2f}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A finished table."""

    spec: TableSpec
    lines: Sequence[Line]
    caption: str

    def markdown(self) -> str:
        """The table with its caption."""
        grouped = self.spec.groups
        columns = ["Method", "#Params", *(column.title for column in self.spec.columns), "Avg."]
        columns = [grouped.title, *columns] if grouped else columns
        rows = [
            [
                *([line.group] if grouped else []),
                line.label,
                line.searched,
                *map(str, line.cells.values()),
                line.average,
            ]
            for line in self.lines
        ]
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        rule = ["-" * width for width in widths]
        body = "\n".join(
            "| "
            + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            + " |"
            for row in [columns, rule, *rows]
        )
        return f"# {self.spec.title}\n\n{body}\n\n{self.caption}\n"

    def frame(self) -> pd.DataFrame:
        """One row a cell, per-seed scores kept; numbers missing where the table has a hole."""
        return pd.DataFrame(
            {
                "table": self.spec.name,
                "profile": self.spec.profile,
                "group": line.group,
                "method": line.label,
                "n_params": line.searched.replace(",", ""),
                "n_stored": line.stored.replace(",", ""),
                "task": column.title,
                "metric": column.metric,
                "mean": cell.mean,
                "std": cell.std,
                "runs": len(cell.scores),
                "missing_seeds": " ".join(cell.missing),
                "scores": " ".join(f"{seed}:{score:.4f}" for seed, score in cell.scores.items()),
            }
            for line in self.lines
            for column, cell in line.cells.items()
        )


def build_table(runs: pd.DataFrame, spec: TableSpec) -> Table:
    """Put finished runs into a table.

    Of runs for the same cell and seed the one asked for last counts, and in each row only runs
    with the settings of the row's last one: results of different settings never share a mean.

    Args:
        runs: As ``dfolora.tracking.Store.runs`` gives them.
        spec: What to show.
    """
    item = f"tags.item.{spec.name}.{spec.profile}"
    runs = runs[runs[item].notna()].sort_values(item, kind="stable") if item in runs else runs[:0]
    rows = spec.groups.rows(spec.rows) if spec.groups else spec.rows
    chosen = [_row_runs(runs, row, spec) for row in rows]
    lines = [
        Line(
            label=row.label,
            group=row.group or "",
            searched=_numbers(mine, "metrics.params/searched"),
            stored=_numbers(mine, "metrics.params/stored"),
            cells={column: _cell(mine, column, spec.seeds) for column in spec.columns},
        )
        for row, mine in zip(rows, chosen, strict=True)
    ]
    used = pd.concat(chosen)
    constants = [
        Line(
            label=label,
            group="",
            searched="0",
            stored="0",
            cells={column: _constant_cell(used, column, name) for column in spec.columns},
        )
        for name, label in spec.constants.items()
    ]
    return Table(spec=spec, lines=[*constants, *lines], caption=_caption(used, spec))


def _row_runs(runs: pd.DataFrame, row: Row, spec: TableSpec) -> pd.DataFrame:
    """A row's runs: of one setting in all, and on the same data within a task."""
    for tag, value in row.where.items():
        column = f"tags.{tag}"
        runs = runs[runs[column] == value] if column in runs else runs[:0]
    if runs.empty:
        return runs
    runs = runs[runs["tags.settings"] == runs["tags.settings"].iloc[-1]]
    runs = runs[runs["tags.rows"] == runs.groupby("tags.task")["tags.rows"].transform("last")]
    wanted = {"any", *map(str, spec.seeds)}
    runs = runs[runs["tags.task"].isin(list(spec.tasks)) & runs["tags.seed"].isin(list(wanted))]
    return runs.drop_duplicates(["tags.task", "tags.seed"], keep="last")


def _cell(runs: pd.DataFrame, column: Column, seeds: Sequence[int]) -> Cell:
    """A method that depends on no seed has one run, tagged ``any``."""
    if runs.empty:
        return Cell(scores={}, missing=[str(seed) for seed in seeds])
    mine = runs[runs["tags.task"] == column.task]
    values = 100 * mine[f"metrics.test/{column.metric}"]
    scores = dict(zip(mine["tags.seed"], values, strict=True))
    unseeded = set(runs["tags.seed"]) == {"any"}
    wanted = ["any"] if unseeded else [str(seed) for seed in seeds]
    return Cell(
        scores={seed: scores[seed] for seed in wanted if seed in scores},
        missing=[seed for seed in wanted if seed not in scores],
    )


def _constant_cell(runs: pd.DataFrame, column: Column, name: str) -> Cell:
    """A hole where no run tells, or where the table's rows were not tested on the same data."""
    metric = f"metrics.test/{name}_{column.metric}"
    mine = runs[runs["tags.task"] == column.task] if len(runs) else runs
    scores = mine[metric].dropna() if metric in mine else pd.Series(dtype=float)
    if scores.nunique() != 1:
        return Cell(scores={}, missing=["any"], applies=mine.empty or not scores.empty)
    return Cell(scores={"any": 100 * float(scores.iloc[0])})


def _numbers(runs: pd.DataFrame, metric: str) -> str:
    if runs.empty:
        return HOLE
    return " / ".join(f"{int(n):,}" for n in sorted(runs[metric].unique()))


def _caption(runs: pd.DataFrame, spec: TableSpec) -> str:
    said = {
        "Profile": spec.profile,
        "Model": _values(runs, "tags.model"),
        "Seeds": ", ".join(map(str, spec.seeds)),
        "Shots per class": _values(runs, "params.data.k"),
        "Calls": _values(runs, "params.budget"),
        "d": _values(runs, "params.dim"),
        "Rank": _values(runs, "params.rank"),
        "Alpha": _values(runs, "params.subspace.alpha"),
        "Sigma": _values(runs, "params.optimizer.sigma"),
        "Commit": _values(runs, "tags.commit"),
        "Runs": len(runs),
    }
    facts = "; ".join(f"{name}: {value}" for name, value in said.items())
    return (
        f"Test score in %, mean (sample standard deviation) over seeds; {HOLE} where runs are "
        f"missing (finished/wanted), {NOT_APPLICABLE} where the predictor does not apply; Avg. is "
        f"the mean of the tasks. #Params counts the numbers searched. Majority class always gives "
        f"the test set's most frequent class (of equals the first), Constant Yes always the label "
        f"word Yes. {facts}. {spec.note}"
    )


def _values(runs: pd.DataFrame, column: str) -> str:
    values: Any = runs[column].dropna().unique() if column in runs else []
    return ", ".join(sorted(map(str, values))) or HOLE
