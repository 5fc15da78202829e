"""What the documents name is there, the site is built, and the notebook runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dfolora

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path
    for pattern in ("*.md", "docs/**/*.md", "reports/**/README.md", "src/**/*.md")
    for path in sorted(ROOT.glob(pattern))
    if path.name != "CHANGELOG.md"  # it names what was
]
PLACES = (ROOT, ROOT / "src" / "dfolora")
"""What a file is named from."""


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_are_there(path):
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    named = re.findall(r"`([\w/]+\.py)`", text)
    assert [link for link in links if not (path.parent / link).exists()] == []
    places = (*PLACES, path.parent)
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_site_is_built_without_a_warning_and_asks_no_other_machine(tmp_path):
    for part in ("docs", "conf", "src"):
        shutil.copytree(ROOT / part, tmp_path / part)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "docs", str(site)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    pages = sorted(site.rglob("*.html"))
    for group in ("method", "optimizer"):
        wanted = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        assert wanted == {page.stem for page in pages if page.parent.name == f"{group}s"}
    cma = re.sub("<[^>]+>", "", (site / "optimizers" / "cma.html").read_text(encoding="utf-8"))
    assert "row=c_lora_bias" in cma  # by the row that it builds on
    host = r"(?:https?:)?//"
    fetched = (
        rf'<(?:script|img|iframe)[^>]* src="{host}|<link[^>]* rel="stylesheet"[^>]* href="{host}'
    )
    assert [page for page in pages if re.search(fetched, page.read_text(encoding="utf-8"))] == []
    reference = re.sub("<[^>]+>", "", (site / "reference.html").read_text(encoding="utf-8"))
    assert all(name in reference for name in dfolora.__all__)
    assert "on the device, in bytes: of layers that are streamed, two." in reference


def test_notebook_runs_and_shows_what_it_did(tmp_path, monkeypatch, capsys):
    """As a script, its cells one after another; scores are told to a tenth."""
    import matplotlib

    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
    names = dict[str, object]()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            shown = [line for out in cell["outputs"] for line in out.get("text", [])]
            assert capsys.readouterr().out == "".join(shown)
