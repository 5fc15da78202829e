"""The documentation as a site, by Sphinx: ``make docs`` writes ``site/``, which opens from disk.

Pages of methods and optimizers are written from the configs. A config's comments are the prose, for
they say where a method comes from and what is known of its values; the values follow as they stand.
"""

import re
import shutil
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
CONF = DOCS.parent / "conf"
ASKED = {"methods": "method", "optimizers": "optimizer"}
"""Folders of pages, and the group of configs that each is made from."""

project = "dfolora"
author = "The dfolora authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["**/.*"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
html_theme = "furo"
html_title = "dfolora"
html_copy_source = False
html_show_copyright = False
html_extra_path = ["quickstart.ipynb"]


def setup(app: Any) -> None:
    """Have pages written before Sphinx looks for them, and attributes' docstrings left alone."""
    app.connect("config-inited", lambda _app, _config: write_pages())
    app.connect("autodoc-process-docstring", _without_a_type, priority=100)  # before napoleon


def _without_a_type(
    _app: Any, what: str, _name: str, _of: Any, _options: Any, lines: list[str]
) -> None:
    """What stands before a colon in the first line is no type, as napoleon takes it to be."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # an empty comment is the first line then


def write_pages() -> None:
    """Write a page for each method and each optimizer."""
    for folder, group in ASKED.items():
        shutil.rmtree(DOCS / folder, ignore_errors=True)
        (DOCS / folder).mkdir()
        for path in _configs(group):
            page = DOCS / folder / f"{path.stem}.md"
            page.write_text(page_of(path, group), encoding="utf-8")


def page_of(path: Path, group: str) -> str:
    """A config as a page."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    said = " ".join(line.removeprefix("#").strip() for line in lines[:first])
    values = "\n".join(lines[first:]).strip()
    rows = [f"`row={row.stem}`" for row in _configs("row") if _option(row, group) == path.stem]
    of_rows = f"\nRows of tables that have it: {', '.join(rows)}.\n" if rows else ""
    return (
        f"# {path.stem}\n\n{_escaped(said)}\n\n`{group}={path.stem}`, with these values:\n\n"
        f"```yaml\n{values}\n```\n{of_rows}"
    )


def _escaped(said: str) -> str:
    """Prose in which no character is Markdown's."""
    return "".join(f"\\{mark}" if mark in "*_<>[]`$" else mark for mark in said)


def _configs(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def _option(row: Path, group: str) -> str | None:
    """The option that a row, or the row that it builds on, chooses of a group."""
    text = row.read_text(encoding="utf-8")
    if chosen := re.search(rf"override /{group}: (\w+)", text):
        return chosen[1]
    based = (CONF / "row" / f"{name}.yaml" for name in re.findall(r"^  - (\w+)$", text, re.M))
    return next((_option(other, group) for other in based if other.exists()), None)
