"""A run's working folder, whatever happens to it."""

import platform
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from dfolora.errors import UserError
from pipelines.one_run.attempt import Attempt
from pipelines.one_run.fit import _peaks

IDENTITY = {"digest": "d" * 64, "code": "c", "commit": "abc", "source": "s"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def attempt(name="a/run", **identity):
    return Attempt(name, IDENTITY | identity)


def begun(**options):
    one = attempt(**options)
    one.begin({"rank": 2}, {"split.json": "{}"})
    return one


def test_what_was_begun_is_gone_on_with_by_whatever_name():
    first = begun()
    assert first.folder == Path("outputs/a_run-dddddddddddd")
    again = attempt("another name")
    again.begin({"rank": 4}, {"split.json": "other"})
    assert again.folder == first.folder
    assert (again.key, again.began, again.params) == (first.key, first.began, {"rank": 2})
    known = {"digest": "d" * 64, "commit": "abc", "source": "s", "attempt": first.key}
    assert again.tags.items() > known.items()
    assert (first.folder / "split.json").read_text() == "{}"


def test_name_leads_out_of_no_folder():
    assert begun(name="../../x" + 300 * "y").folder.resolve().parent == Path("outputs").resolve()


def test_attempt_of_before_has_no_source():
    identity = {key: value for key, value in IDENTITY.items() if key != "source"}
    old = Attempt("old", identity)
    old.begin({}, {})
    assert old.tags.keys() == {"digest", "place", "commit", "attempt"}


def test_code_must_be_the_same_and_the_commit_need_not():
    begun()
    attempt(commit="def").check()
    with pytest.raises(UserError, match="code was c and is e"):
        attempt(code="e").check()


def test_attempt_that_was_not_begun_is_known_by_digest_and_place():
    assert attempt().tags == {
        "digest": "d" * 64,
        "place": f"{platform.node()}:{Path('outputs').absolute()}",
    }


@pytest.mark.parametrize("content", ["{", "3", "[1]", ""])
def test_damaged_beginning_is_told(content):
    (begun().folder / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json is damaged: .* Delete .* anew"):
        attempt().check()


def test_file_is_whole_or_not_there(monkeypatch):
    one = begun()

    def fail(*_arguments):
        raise OSError("full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="full"):
        one.finish(told="t", seconds=1.0, metrics={})
    assert not attempt().finished


def test_what_is_half_thrown_away_vouches_for_nothing(monkeypatch):
    one = begun()
    one.finish(told="t", seconds=1.0, metrics={})
    key = one.key

    def killed(_folder):
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            one.discard()
    assert one.folder.exists()
    again = begun()
    assert not again.finished
    assert again.key != key


def test_record_is_what_was_measured():
    one = begun()
    one.finish(told="test 0.5", seconds=2.5, metrics={"test/score": 0.5})
    calls = []
    log = SimpleNamespace(
        metrics=lambda values, seconds: calls.append((values, seconds)), artifacts=calls.append
    )
    assert attempt().record(log) == "test 0.5"
    assert calls == [({"test/score": 0.5}, 2.5), one.folder]


def test_peak_is_that_of_all_processes():
    memory = SimpleNamespace(megabytes=lambda: {"process": 5.0, "torch": 9.0})
    before = SimpleNamespace(lines=[{"memory_mb": {"process": 7.0}}, {"train": 0}])
    assert _peaks(memory, before) == {"process": 7.0, "torch": 9.0}
