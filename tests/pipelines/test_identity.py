"""What a run's source is: all that its results depend on, and nothing more."""

import pytest

from pipelines.one_run import identity
from pipelines.one_run.execute import Run
from tests.commands import composed


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


def test_values_that_were_always_so_are_no_part_of_the_settings():
    plain = {"budget": 9, "budget_in": "calls", "batch_size": None, "words": None}
    assert identity._said(plain) == {"budget": 9, "words": None}
    assert identity._said(plain | {"budget_in": "flops", "batch_size": 4}) == plain | {
        "budget_in": "flops", "batch_size": 4,
    }  # fmt: skip
    for released, said in ((False, {"rank": 1}), (True, {"rank": 1, "released": True})):
        law = {"rank": 1, "released": released}
        nested = {"optimizer": {"bound": None, "law": law}, "penalty": 0.0}
        assert identity._said(nested) == {"optimizer": {"law": said}}
    assert identity._said({"subspace": {"layers": None, "vectors": 2}}) == {
        "subspace": {"layers": None, "vectors": 2}  # of other names
    }


def test_rows_of_several_tasks_share_their_settings():
    """Also where a method takes its templates from the task; those that are given are a setting."""

    def settings(*overrides):
        job = Run.checked(*composed("row=prompt_boosting", *overrides), "sweep")
        return job.labels["settings"]

    assert settings("task=mini/sst2") == settings("task=mini/rte") == settings("task=mini/dbpedia")
    given = "method.templates=['{sentence} It was {mask}.']"
    assert settings("task=mini/sst2", given) != settings("task=mini/sst2")
