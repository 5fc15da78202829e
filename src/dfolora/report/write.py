"""Writes all files of an item: the same table in every format."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dfolora.report import figures, pages
from dfolora.report.formats import latex, long_latex, markdown, plain
from dfolora.report.grid import Grid
from dfolora.report.published import Published, comparison
from dfolora.report.tables import Table

if TYPE_CHECKING:
    import pandas as pd

CURVE = "fitness.png"
"""The file name of a run's own picture."""


class Archive(Protocol):
    """What a report needs of the store beside its runs; ``dfolora.record.Store`` fits."""

    def history(self, run_ids: Sequence[str], metric: str) -> "pd.DataFrame":
        """The points of a metric."""
        ...

    def artifact(self, folder: str, name: str) -> bytes | None:
        """A file of a run, whose ``artifact_uri`` is ``folder``; None if there is none."""
        ...


def write_item(folder: Path, table: Table, published: Published, archive: Archive) -> str:
    """Write ``<folder>/<stem>`` as .md, .csv, .tex and .html; a figure also as .png and .svg.

    The runs' pages go to ``<folder>/runs``; the index is updated.

    Args:
        folder: Created if it does not exist.
        table: What to write.
        published: The paper's numbers; empty if they are about other tasks.
        archive: The store, for curves and pictures.

    Returns:
        The Markdown.
    """
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    path = folder / table.spec.stem
    beside = comparison(table, published)
    picture = None
    if table.spec.picture is not None:
        figures.save(figures.draw(table, _curves(table, archive)), path)
        picture = path.with_suffix(".svg").read_bytes()
    text = _markdown(table, beside)
    _write(path.with_suffix(".md"), text)
    table.frame().to_csv(path.with_suffix(".csv"), index=False)
    _write(path.with_suffix(".tex"), _latex(table, beside))
    _write(path.with_suffix(".html"), pages.item_page(table, beside, picture))
    for name, page in pages.run_pages(table, lambda folder: archive.artifact(folder, CURVE)):
        _write(folder / "runs" / name, page)
    entries = pages.update_index(folder, table)
    drawn = {name: folder / f"{name}.png" for name in entries["name"]}
    pictures = {name: path.read_bytes() for name, path in drawn.items() if path.exists()}
    _write(folder / "index.html", pages.index_page(entries, pictures))
    return text


def _curves(table: Table, archive: Archive) -> dict[str, "pd.DataFrame"]:
    assert table.spec.picture is not None
    if table.spec.picture.kind != "curves":
        return {}
    finished = table.runs[table.runs["status"] == "FINISHED"]
    ids = finished["run_id"].tolist()
    return {metric: archive.history(ids, metric) for metric in figures.CURVES}


def _markdown(table: Table, beside: Grid | None) -> str:
    parts = [markdown(table.grid())]
    if table.spec.picture is not None:
        parts.append(f"![{plain(table.spec.title)}]({table.spec.stem}.png)\n")
    if holes := list(table.holes()):
        parts.append("## What is missing\n\n" + "".join(f"- {plain(hole)}\n" for hole in holes))
    if beside is not None:
        parts.append(markdown(beside, level=2))
    return "\n".join(parts)


def _latex(table: Table, beside: Grid | None) -> str:
    text = latex(table.grid(), f"tab:{table.spec.stem}")
    return text if beside is None else f"{text}\n{long_latex(beside)}"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
