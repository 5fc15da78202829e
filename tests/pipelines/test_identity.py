"""What a run's source is: all that its results depend on, and nothing more."""

import pytest

from pipelines import identity


@pytest.fixture
def digest_after(tmp_path, monkeypatch):
    """The source's digest once a file of a small library has other contents."""
    monkeypatch.setattr(identity, "LIBRARY", tmp_path)
    files = ["errors.py", "record/store.py", "report/tables.py", "search/loop.py", "notes.txt"]

    def digest(changed=None):
        for name in files:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("new" if name == changed else "old")
        return identity.source.__wrapped__()

    return digest


@pytest.mark.parametrize("name", ["record/store.py", "report/tables.py", "notes.txt"])
def test_what_records_and_reports_is_no_part_of_it(name, digest_after):
    assert digest_after(name) == digest_after()


@pytest.mark.parametrize("name", ["errors.py", "search/loop.py"])
def test_all_else_is(name, digest_after):
    assert digest_after(name) != digest_after()


def test_it_is_a_part_of_the_code():
    assert identity.source() != identity.code()
