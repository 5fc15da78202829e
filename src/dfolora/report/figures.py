"""Pictures of tables and curves, as PNG and SVG. No state of matplotlib's is changed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dfolora.report.tables import Line, Table

CURVES = {"train/loss": "train loss", "dev/score": "dev score"}
"""What is drawn of a run as it goes on."""
PANEL = (5.0, 3.6)
"""Inches."""


def draw(table: Table, curves: Mapping[str, pd.DataFrame]) -> Any:
    """The table's picture.

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
    """Write ``<path>.png`` and ``<path>.svg``, the same bytes for the same picture.

    Args:
        figure: From ``draw``.
        path: Without suffix.
    """
    import matplotlib

    figure.savefig(path.with_suffix(".png"), dpi=120)
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _figure(rows: int, columns: int, *, height: float = PANEL[1]) -> tuple[Any, Sequence[Any]]:
    # The object interface: pyplot would keep global state and look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * columns, height * rows), layout="constrained")
    places = range(1, 1 + rows * columns)
    return figure, [figure.add_subplot(rows, columns, place) for place in places]


def _bars(table: Table, _curves: Mapping[str, pd.DataFrame]) -> Any:
    """The average of each row; an empty place for a hole, a line for a constant predictor."""
    lines = [line for line in table.lines if not line.constant]
    figure, (axes,) = _figure(1, 1, height=1.2 + 0.3 * len(lines))
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
    _finish(axes, table.spec.title)
    return figure


def _lines(table: Table, _curves: Mapping[str, pd.DataFrame]) -> Any:
    """A panel a column, a curve a row, the groups from left to right; bars are deviations."""
    picture = table.spec.picture
    assert picture is not None
    figure, panels = _figure(1, len(table.columns))
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
        _finish(axes, column.title)
    return figure


def _curves(table: Table, curves: Mapping[str, pd.DataFrame]) -> Any:
    """Each curve against calls and against seconds: mean and deviation over seeds."""
    figure, panels = _figure(len(CURVES), 2)
    places = iter(panels)
    for metric, title in CURVES.items():
        for x, x_title in (("step", "calls"), ("seconds", "seconds")):
            axes = next(places)
            for index, line in enumerate(line for line in table.lines if not line.constant):
                style = {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "--"}
                _band(axes, line, curves.get(metric), x, style)
            axes.set(xlabel=x_title, ylabel=title)
            _finish(axes, table.spec.title if axes is panels[0] else "")
    return figure


def _band(
    axes: Any, line: Line, points: pd.DataFrame | None, x: str, style: Mapping[str, str]
) -> None:
    """Only where all of a line's seeds have begun; a run that has ended stays where it was."""
    cell = next(iter(line.cells.values()))
    if points is None or points.empty or cell.hole or cell.runs is None:
        return
    mine = points[points["run_id"].isin(list(cell.runs.values()))]
    if mine["run_id"].nunique() < len(cell.scores):
        return
    wide = mine.pivot_table(index=x, columns="run_id", values="value", aggfunc="last")
    wide = wide.sort_index().ffill().dropna()
    mean, std = wide.mean(axis=1), wide.std(axis=1).fillna(0.0)
    axes.plot(wide.index, mean, label=line.label, drawstyle="steps-post", **style)
    axes.fill_between(
        wide.index,
        mean - std,
        mean + std,
        color=style["color"],
        alpha=0.2,
        step="post",
        linewidth=0,
    )


KINDS: Mapping[str, Callable[[Table, Mapping[str, pd.DataFrame]], Any]] = {
    "bars": _bars,
    "lines": _lines,
    "curves": _curves,
}


def _finish(axes: Any, title: str) -> None:
    """Title and legend, as they are: a dollar sign in a label is no formula."""
    axes.set_title(title, fontsize="small", parse_math=False)
    if axes.get_legend_handles_labels()[1]:
        for text in axes.legend(fontsize="x-small").get_texts():
            text.set_parse_math(False)
