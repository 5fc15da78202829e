"""Local stores that were moved or copied, with their artifacts or without."""

import shutil

import pytest

from dfolora.errors import UserError
from dfolora.record import Store
from pipelines.mend_store import mended


def record(folder, text):
    """A run with an artifact, in a store of this folder; the run's id."""
    folder.mkdir(exist_ok=True)
    store = Store(f"sqlite:///{folder}/mlflow.db")
    store.check_experiment("runs")
    (folder / "files").mkdir(exist_ok=True)
    (folder / "files" / "note.txt").write_text(text)
    with store.start("runs", "a run", tags={"digest": text}, params={}) as log:
        log.artifacts(folder / "files")
    return log.run_id


@pytest.fixture
def first(tmp_path):
    record(tmp_path / "first", "one")
    return tmp_path / "first"


@pytest.mark.parametrize("copied", [False, True], ids=["moved", "copied"])
def test_a_store_elsewhere_is_told_and_mended(first, tmp_path, copied):
    second = tmp_path / "second"
    (shutil.copytree if copied else shutil.move)(first, second)
    uri = f"sqlite:///{second}/mlflow.db"
    with pytest.raises(UserError, match=r"was moved: it notes 2 places .* such as .*/first/mlruns"):
        record(second, "two")
    place = Store(uri).runs().artifact_uri[0]
    assert Store(uri).artifact(place, "note.txt") == b"one"  # found beside the store all the same
    assert mended(uri) == f"2 places: file://{first}/mlruns -> file://{second}/mlruns"
    assert "Nothing to change" in mended(uri)
    run_id = record(second, "two")
    assert (second / "mlruns" / "runs" / run_id / "artifacts" / "note.txt").read_text() == "two"
    if copied:
        assert len(list((first / "mlruns" / "runs").iterdir())) == 1
    else:
        assert not first.exists()


def test_artifacts_that_stayed_where_they_were_are_left_there(first, tmp_path):
    (tmp_path / "second").mkdir()
    for file in first.glob("mlflow.db*"):
        shutil.move(file, tmp_path / "second")
    uri = f"sqlite:///{tmp_path}/second/mlflow.db"
    assert "Nothing to change" in mended(uri)
    assert Store(uri).artifact(Store(uri).runs().artifact_uri[0], "note.txt") == b"one"


@pytest.mark.parametrize("how", ["link", "detour"])
def test_a_store_by_another_spelling_of_its_path_was_not_moved(first, tmp_path, how):
    other = tmp_path / "link"
    other.symlink_to(first)
    record(other if how == "link" else other / ".." / "first", "two")
    record(first, "three")
    assert "Nothing to change" in mended(f"sqlite:///{other}/mlflow.db")


def test_an_experiment_may_be_called_as_the_folder_is(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    with store.start("mlruns", "a run", tags={"digest": "one"}, params={}):
        pass
    store.check_experiment("mlruns")


def test_a_new_store_in_another_folder_was_not_moved(tmp_path, monkeypatch):
    """MLflow notes its own experiment in the working folder."""
    (tmp_path / "work" / "mlruns").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    record(tmp_path / "store", "one")
    record(tmp_path / "store", "two")


@pytest.mark.parametrize("uri", ["sqlite:///nothing.db", "http://localhost:1"])
def test_only_a_local_file_that_is_there_is_mended(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"There is no tracking store {uri}; set tracking.uri"):
        mended(uri)
    assert not list(tmp_path.iterdir())


def test_artifacts_without_a_folder_are_told_before_a_run(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "mlruns").write_text("")
    with pytest.raises(UserError, match=r"folder of artifacts=.*mlruns cannot be used: .*not a"):
        store.check_experiment("runs")
