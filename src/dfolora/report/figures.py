"""Draws tables and curves as PNG and SVG, without changing matplotlib's global state."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dfolora.report.tables import Line, Table

CURVES = {"train/loss": "lowest train loss so far", "dev/score": "highest dev score so far"}
"""The metrics drawn over a run, and their titles."""
SO_FAR: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "train/loss": lambda runs: runs.cummin(),
    "dev/score": lambda runs: runs.cummax(),
}
"""From values, one run a column, to the best so far."""
PANEL = (5.0, 3.6)
"""A panel's width and height, in inches."""


def draw(table: Table, curves: Mapping[str, pd.DataFrame]) -> Any:
    """Draw the table's picture.

    Args:
        table: Whose ``spec.picture`` is not None.
        curves: By metric, points of the table's runs: ``run_id``, ``step``, ``seconds``,
            ``value``.

    Returns:
        A matplotlib ``Figure``.
    """
    assert table.spec.picture is not None
    return KINDS[table.spec.picture.kind](table, curves)


def save(figure: Any, path: Path) -> None:
    """Write ``<path>.png`` and ``<path>.svg``; the same picture gives the same bytes.

    Args:
        figure: From ``draw``.
        path: Without suffix.
    """
    import matplotlib

    figure.savefig(path.with_suffix(".png"), dpi=120)
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _figure(
    table: Table, rows: int, columns: int, *, height: float = PANEL[1]
) -> tuple[Any, Sequence[Any]]:
    """A figure with the table's title above a grid of panels."""
    # The object interface, for pyplot keeps global state and looks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * columns, height * rows), layout="constrained")
    figure.suptitle(table.spec.title, fontsize="medium", parse_math=False)
    places = range(1, 1 + rows * columns)
    return figure, [figure.add_subplot(rows, columns, place) for place in places]


def _bars(table: Table, _curves: Mapping[str, pd.DataFrame]) -> Any:
    """A bar for each row's average, none for a hole; a line for each constant predictor."""
    lines = [line for line in table.lines if not line.constant]
    figure, (axes,) = _figure(table, 1, 1, height=1.2 + 0.3 * len(lines))
    for place, line in enumerate(lines):
        if not pd.isna(line.average):
            axes.barh(place, line.average, color="C0")
        axes.text(
            0 if pd.isna(line.average) else line.average, place, f" {table.average(line)}",
            va="center", fontsize="small", parse_math=False,
        )  # fmt: skip
    for style, line in zip((":", "--", "-."), (x for x in table.lines if x.constant), strict=False):
        if not pd.isna(line.average):
            axes.axvline(line.average, color="gray", linestyle=style, label=line.label)
    axes.set_yticks(range(len(lines)), [line.label for line in lines], parse_math=False)
    axes.set(xlim=(0, 100), ylim=(len(lines) - 0.5, -0.5), xlabel="average test score in %")
    _legend(axes)
    return figure


def _lines(table: Table, _curves: Mapping[str, pd.DataFrame]) -> Any:
    """A panel for each column, a curve for each row over the groups; error bars are deviations."""
    picture = table.spec.picture
    assert picture is not None
    figure, panels = _figure(table, 1, len(table.columns))
    for axes, column in zip(panels, table.columns, strict=True):
        for label in dict.fromkeys(line.label for line in table.lines if not line.constant):
            cells = [
                (float(line.group), line.cells[column])
                for line in table.lines
                if line.label == label and not line.cells[column].hole
            ]
            axes.errorbar(
                [x for x, _ in cells], [cell.mean for _, cell in cells],
                yerr=[0 if pd.isna(cell.std) else cell.std for _, cell in cells],
                marker="o", capsize=3, label=label,
            )  # fmt: skip
        ticks = sorted({float(line.group) for line in table.lines if not line.constant})
        if picture.log_x:
            axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set(xlabel=picture.x_title, ylabel="test score in %")
        axes.set_title(column.title, fontsize="small", parse_math=False)
        _legend(axes)
    return figure


def _curves(table: Table, curves: Mapping[str, pd.DataFrame]) -> Any:
    """Each metric against calls and against seconds: mean and deviation over seeds."""
    from matplotlib import colormaps

    figure, panels = _figure(table, len(CURVES), 2, height=4.5)
    places = iter(panels)
    lines = [line for line in table.lines if not line.constant]
    for metric, title in CURVES.items():
        for x, x_title in (("step", "calls"), ("seconds", "seconds")):
            axes = next(places)
            for index, line in enumerate(lines):
                style = {
                    "color": colormaps["tab20"](index % 20),
                    "linestyle": "-" if index < 20 else "--",
                }
                _band(axes, line, curves.get(metric), x, SO_FAR[metric], style)
            axes.set(xlabel=x_title, ylabel=title)
        axes.set_xscale("log")  # of the seconds
    drawn = {
        label: line
        for axes in panels
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if drawn:
        legend = figure.legend(drawn.values(), drawn, loc="outside right", fontsize="x-small")
        _as_they_are(legend)
    return figure


def _band(
    axes: Any,
    line: Line,
    points: pd.DataFrame | None,
    x: str,
    so_far: Callable[[pd.DataFrame], pd.DataFrame],
    style: Mapping[str, Any],
) -> None:
    """From where all of a line's seeds have begun; a run that has ended keeps its last value."""
    cell = next(iter(line.cells.values()))
    if points is None or points.empty or cell.hole or cell.runs is None:
        return
    mine = points[points["run_id"].isin(list(cell.runs.values()))]
    if mine["run_id"].nunique() < len(cell.scores):
        return
    wide = mine.pivot_table(index=x, columns="run_id", values="value", aggfunc="last")
    wide = so_far(wide.sort_index().ffill()).dropna()
    mean, std = wide.mean(axis=1), wide.std(axis=1).fillna(0.0)
    marker = "o" if len(wide) == 1 else ""  # a line of one point has no length
    axes.plot(
        wide.index, mean, label=line.label, drawstyle="steps-post", marker=marker, **style
    )  # fmt: skip
    axes.fill_between(
        wide.index, mean - std, mean + std, color=style["color"], alpha=0.15, step="post",
        linewidth=0,
    )  # fmt: skip


KINDS: Mapping[str, Callable[[Table, Mapping[str, pd.DataFrame]], Any]] = {
    "bars": _bars,
    "lines": _lines,
    "curves": _curves,
}


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[1]:
        _as_they_are(axes.legend(fontsize="x-small"))


def _as_they_are(legend: Any) -> None:
    """Show a dollar sign in a label as it is, not as a formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)
