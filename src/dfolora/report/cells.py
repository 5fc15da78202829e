"""Selects the runs of each cell, and says why a cell shows no number.

A cell has a number only when it has one finished run for every seed, all of one configuration and
of the same data. Any other cell is a hole, with its reasons. Runs of different code are averaged,
and the cell is marked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import pandas as pd

from dfolora.report.spec import Column, Row, TableSpec

HOLE = "—"
NOT_APPLICABLE = "n/a"
MIXED = "†"
UNSEEDED = "any"
"""The seed's tag of a method that depends on none."""
STATUS = {"FAILED": "failed", "KILLED": "was killed", "RUNNING": "is not finished"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one task, by seed."""

    scores: Mapping[str, float]
    """Scores in the column's unit, by seed."""
    digits: int = 2
    missing: Sequence[str] = ()
    """Seeds without a finished run."""
    commits: Sequence[str] = ()
    """The runs' commits."""
    sources: frozenset[str] = frozenset()
    """The code that its runs are of, as far as results depend on it."""
    runs: Mapping[str, str] | None = None
    """Run ids by seed, including unfinished and failed runs."""
    notes: Sequence[str] = ()
    """Why there is no number."""
    applies: bool = True
    """Whether the method can have a number here at all."""

    @property
    def mixed(self) -> bool:
        """Whether its runs are of different code."""
        return len(self.sources) > 1

    @property
    def hole(self) -> bool:
        """Whether it has no number."""
        return bool(self.missing) or not self.scores

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN for a hole."""
        return float("nan") if self.hole else float(pd.Series(self.scores).mean())

    @property
    def std(self) -> float:
        """Sample standard deviation (ddof 1); NaN for a hole or a single run."""
        return float("nan") if self.hole else float(pd.Series(self.scores).std(ddof=1))

    @property
    def error(self) -> float:
        """Standard error of the mean; NaN for a hole or a single run."""
        return self.std / sqrt(max(1, len(self.scores)))

    def __str__(self) -> str:
        if not self.applies:
            return NOT_APPLICABLE
        if self.hole:
            wanted = len(self.scores) + len(self.missing)
            return f"{HOLE} ({len(self.scores)}/{wanted})" if self.scores else HOLE
        spread = "" if pd.isna(self.std) else f" ({self.std:,.{self.digits}f})"
        return f"{self.mean:,.{self.digits}f}{spread}{MIXED if self.mixed else ''}"


@dataclass(frozen=True)
class RowRuns:
    """A row's runs."""

    counted: pd.DataFrame
    """Finished runs of one configuration, on the same data within a task."""
    rest: pd.DataFrame
    """The row's other runs: unfinished, failed, of another configuration or other data."""

    @property
    def seeds(self) -> set[str]:
        """The seeds of all its runs."""
        return set(self.counted["tags.seed"]) | set(self.rest["tags.seed"])


def item_runs(runs: pd.DataFrame, spec: TableSpec) -> pd.DataFrame:
    """The runs that were asked for the table, the last ones asked for at the end.

    Args:
        runs: As ``dfolora.record.Store.runs`` gives them.
        spec: What to show.
    """
    tag = f"tags.{spec.item}"
    runs = runs[runs[tag].notna()].sort_values(tag, kind="stable") if tag in runs else runs[:0]
    if runs.empty:
        return pd.DataFrame(columns=["status", "run_id", "tags.task", "tags.seed"])
    wanted = {UNSEEDED, *map(str, spec.seeds)}
    return runs[runs["tags.task"].isin(list(spec.tasks)) & runs["tags.seed"].isin(list(wanted))]


def row_runs(runs: pd.DataFrame, row: Row) -> RowRuns:
    """Split a row's runs into those that count and the rest.

    The row's configuration is that of the run asked for last, whatever became of it; so is a
    task's data. Of finished runs for the same cell and seed the one asked for last counts.

    Args:
        runs: From ``item_runs``.
        row: Whose runs.
    """
    for tag, value in row.where.items():
        column = f"tags.{tag}"
        runs = runs[runs[column] == value] if column in runs else runs[:0]
    if runs.empty:
        return RowRuns(runs, runs)
    counts = (
        (runs["status"] == "FINISHED")
        & (runs["tags.settings"] == runs["tags.settings"].iloc[-1])
        & (runs["tags.rows"] == runs.groupby("tags.task")["tags.rows"].transform("last"))
    )
    counted = runs[counts].drop_duplicates(["tags.task", "tags.seed"], keep="last")
    return RowRuns(counted, runs[~counts])


def cells(runs: RowRuns, columns: Sequence[Column], seeds: Sequence[int]) -> dict[Column, Cell]:
    """Build one row's cells.

    Args:
        runs: The row's.
        columns: Of the table.
        seeds: Every one must have a run, but for a method that depends on none.
    """
    wanted = [UNSEEDED] if runs.seeds == {UNSEEDED} else [str(seed) for seed in seeds]
    return {column: _cell(runs, column, wanted) for column in columns}


def _cell(runs: RowRuns, column: Column, wanted: Sequence[str]) -> Cell:
    counted, rest = (
        part if column.task is None else part[part["tags.task"] == column.task]
        for part in (runs.counted, runs.rest)
    )
    measure = column.measure
    metric = f"metrics.{measure.metric}"
    measured = counted[counted[metric].notna()] if metric in counted else counted[:0]
    values = dict(zip(measured["tags.seed"], measured.get(metric, []), strict=True))
    commits = sorted(measured["tags.commit"].unique()) if len(measured) else []
    missing = [seed for seed in wanted if seed not in values]
    ids = dict(zip(rest["tags.seed"], rest["run_id"], strict=True))
    ids |= dict(zip(counted["tags.seed"], counted["run_id"], strict=True))
    # A method may have no such number at all: nothing chooses the zero-shot prompt.
    applies = bool(values) or not set(wanted) <= set(counted["tags.seed"])
    return Cell(
        scores={seed: measure.factor * values[seed] for seed in wanted if seed in values},
        digits=measure.digits,
        missing=missing,
        commits=commits,
        sources=frozenset(_source(measured)) if len(measured) else frozenset(),
        runs={seed: ids[seed] for seed in wanted if seed in ids},
        notes=[*_reasons(rest, counted, missing)] if applies else [],
        applies=applies,
    )


def _source(runs: pd.DataFrame) -> "pd.Series[str]":
    """The code that results depend on; of runs that do not tell it their commit."""
    if "tags.source" not in runs:
        return runs["tags.commit"]
    return runs["tags.source"].fillna(runs["tags.commit"])


def _reasons(rest: pd.DataFrame, counted: pd.DataFrame, missing: Sequence[str]) -> Iterator[str]:
    """Why each missing seed is missing, if a run shows it."""
    unmeasured = dict(zip(counted["tags.seed"], counted["run_id"], strict=True))
    last = rest.drop_duplicates("tags.seed", keep="last").set_index("tags.seed")
    for seed in missing:
        if seed in unmeasured:
            yield f"seed {seed}: run {unmeasured[seed][:8]} did not record it"
        elif seed in last.index:
            run_id, status = last.loc[seed, "run_id"], last.loc[seed, "status"]
            what = STATUS.get(status, "is of another configuration or other data")
            yield f"seed {seed}: run {run_id[:8]} {what}"


def constant_cell(runs: pd.DataFrame, column: Column, name: str) -> Cell:
    """What a constant predictor scores, as the runs recorded it.

    A hole if no run recorded it, or if the table's rows were tested on different data.

    Args:
        runs: All that the table counts.
        column: Of which task and measure.
        name: The predictor's, as metrics are named by.
    """
    part, _, score = column.measure.metric.partition("/")
    metric = f"metrics.{part}/{name}_{score}"
    mine = runs[runs["tags.task"] == column.task] if len(runs) else runs
    scores = mine[metric].dropna() if metric in mine else pd.Series(dtype=float)
    if scores.nunique() != 1:
        untold = mine.empty or not scores.empty
        return Cell(scores={}, missing=[UNSEEDED], applies=untold)
    return Cell(
        scores={UNSEEDED: column.measure.factor * float(scores.iloc[0])},
        digits=column.measure.digits,
    )
