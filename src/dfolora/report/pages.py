"""Writes HTML that opens from disk: a page for each item and each run, and an index.

Pages are self-contained, so nothing is fetched; the template engine escapes every text.
"""

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from dfolora.report.dots import dots
from dfolora.report.grid import Grid
from dfolora.report.tables import Table

SERVER = "http://127.0.0.1:5000"
"""Where ``make mlflow-ui`` shows the store."""
INDEX = ["name", "title", "profile", "filled", "cells", "runs"]


def item_page(table: Table, comparison: Grid | None, picture: bytes | None) -> str:
    """Render an item: its table with links to the runs, its picture, the paper's numbers.

    Args:
        table: The item's.
        comparison: The paper's numbers beside ours.
        picture: An SVG.
    """
    statuses = dict(zip(table.runs["run_id"], table.runs["status"], strict=True))
    return _render(
        "item.html",
        table=table,
        statuses=statuses,
        holes=list(table.holes()),
        dots=list(dots(table)),
        comparison=comparison,
        picture=None if picture is None else _embedded(picture, "svg+xml"),
    )


def run_page(run: Mapping[str, Any], picture: bytes | None) -> str:
    """Render all that the store holds of one run.

    Args:
        run: A row of the store's frame.
        picture: A PNG of its curve.
    """
    # Missing values are None or NaN, which does not equal itself.
    known = {name: value for name, value in run.items() if value is not None and value == value}
    parts = {part: _listed(known, f"{part}.") for part in ("tags", "params")}
    return _render(
        "run.html",
        run=known,
        metrics=_grouped(known),
        parts=parts,
        url=f"{SERVER}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}",
        picture=None if picture is None else _embedded(picture, "png"),
    )


def _grouped(values: Mapping[str, Any]) -> Mapping[str, Sequence[tuple[str, Any]]]:
    """Metrics with their values, by what stands before the stroke in their names."""
    prefix = "metrics."
    names = (name.removeprefix(prefix) for name in values if name.startswith(prefix))
    parts: dict[str, list[tuple[str, Any]]] = {}
    for name in sorted(names):
        part = name.partition("/")[0] if "/" in name else ""
        parts.setdefault(part, []).append((name, values[prefix + name]))
    return dict(sorted(parts.items()))


def _rounded(value: Any) -> str:
    """A number as people read it: four digits, or whole if it is large; texts as they are."""
    if not isinstance(value, int | float):
        return str(value)
    large = float(value).is_integer() or abs(value) >= 1000
    return f"{value:,.0f}" if large else f"{value:.4g}"


def _listed(values: Mapping[str, Any], prefix: str) -> str:
    """Names and values in two columns, one pair a line."""
    mine = {
        name.removeprefix(prefix): value
        for name, value in sorted(values.items())
        if name.startswith(prefix) and not name.startswith("tags.mlflow.")
    }
    width = max(map(len, mine), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in mine.items())


def index_page(entries: pd.DataFrame, pictures: Mapping[str, bytes]) -> str:
    """Render the links to all items.

    Args:
        entries: One item a row, with the columns of ``INDEX``.
        pictures: PNGs of figures, by the item's name.
    """
    thumbnails = {name: _embedded(picture, "png") for name, picture in pictures.items()}
    return _render("index.html", entries=entries.to_dict("records"), thumbnails=thumbnails)


def update_index(folder: Path, table: Table) -> pd.DataFrame:
    """Add the table to ``index.csv``, replacing its old entry, and return all entries.

    Args:
        folder: The reports' folder; entries whose page is gone are dropped.
        table: The table just written.
    """
    path = folder / "index.csv"
    cells = [cell for line in table.lines for cell in line.cells.values() if cell.applies]
    entry = {
        "name": table.spec.stem,
        "title": table.spec.title,
        "profile": table.spec.profile,
        "filled": sum(not cell.hole for cell in cells),
        "cells": len(cells),
        "runs": len(table.runs),
    }
    rows = [entry]
    if path.exists():
        rows += pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    entries = pd.DataFrame(rows, columns=INDEX).drop_duplicates("name")
    entries = entries.sort_values(["title", "profile"])
    entries = entries[[(folder / f"{name}.html").exists() for name in entries["name"]]]
    entries.to_csv(path, index=False)
    return entries


def run_pages(table: Table, picture_of: Callable[[str], bytes | None]) -> Iterator[tuple[str, str]]:
    """Yield the file name and page of every run that the table links to.

    Args:
        table: Whose runs.
        picture_of: A run's curve as a PNG, by its ``artifact_uri``.
    """
    runs = table.runs.to_dict("records")
    with ThreadPoolExecutor() as several:  # each may wait for a server
        pictures = several.map(picture_of, [run["artifact_uri"] for run in runs])
        for run, picture in zip(runs, pictures, strict=True):
            yield _file_name(run["run_id"]), run_page(run, picture)


def _file_name(run_id: str) -> str:
    """The name of a run's page; ids come from the store, so path separators are quoted."""
    return f"{quote(run_id, safe='')}.html"


def _embedded(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(picture).decode()}"


def _render(template: str, **values: Any) -> str:
    return str(_environment().get_template(template).render(**values))


@lru_cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dfolora.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["file_name"] = _file_name
    environment.filters["rounded"] = _rounded
    return environment
