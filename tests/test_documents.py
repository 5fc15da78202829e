"""What the documents name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path
    for pattern in ("*.md", "reports/**/README.md", "src/**/*.md")
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
