"""What a run fitted, in use: as a classifier, and over files of rows."""

import pytest

import dfolora
from dfolora.errors import UserError
from dfolora.fewshot.problem import TaskRows
from dfolora.record import Store
from pipelines.execute import Job, execute
from tests.commands import composed

SMALL = ("budget=45", "dim=8", "data.k=4", "dev_interval=20")
SETTINGS = {
    "a search": ("task=mini/sst2",),
    "two fields, another metric": ("task=mini/mrpc",),
    "replacements in the text": ("task=mini/snli",),
    "words after a space": ("data.prompt=natural",),
    "a causal model": ("model=mini_gpt2",),
    "an answer in the padding": ("model=mini_gpt2", "data.readout=released"),
    "streamed layers": ("engine.stream=true",),
    "half precision": ("precision=bf16",),
    "weights in 8 bits": ("precision=int8",),
    "random weights": ("model.weights=random",),
    "short rows": ("data.max_length=12",),
}


def run(folder, *overrides):
    """A run of the store in a folder: its id, its test rows and its score."""
    config, choices = composed(*SMALL, *overrides)
    config.tracking.uri = f"sqlite:///{folder}/mlflow.db"
    run_id = execute(config, choices, sweep_id="s").run_id
    rows = Job.checked(config, choices, "s").rows
    return run_id, rows, Store(config.tracking.uri).metric(run_id, "test/accuracy")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of the usual settings, in a folder of its own."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, *run(folder)


def texts_of(rows: TaskRows):
    return [dict(text) for text in rows.test.texts]


def names_of(rows: TaskRows):
    return [rows.task.classes[label] for label in rows.test.labels]


# As a classifier.


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_score_of_what_is_loaded_is_the_runs_own(name, in_folder):
    run_id, rows, score = run(in_folder, *SETTINGS[name])
    loaded = dfolora.load(run_id)
    assert loaded.classes_.tolist() == [*rows.task.classes]
    assert loaded.score(texts_of(rows), names_of(rows)) == score
    assert score > 0.4 or name in ("random weights", "short rows")


def test_run_is_found_in_its_store_and_nowhere_else(made, in_folder, monkeypatch):
    folder, run_id, _, _ = made
    uri = f"sqlite:///{folder}/mlflow.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert dfolora.load(run_id, tracking_uri=uri).classes_.tolist() == ["negative", "positive"]
    with pytest.raises(UserError, match=r"There is no tracking store sqlite:///mlflow\.db; give a"):
        dfolora.load(run_id)
    assert not list(in_folder.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    dfolora.load(run_id)
    with pytest.raises(UserError, match=r"no folder and, in the tracking store .*, no run 0123\."):
        dfolora.load("0123")


def test_run_that_left_nothing_and_one_of_before_are_told(in_folder):
    run_id, _, _ = run(in_folder, "method=manual_prompt")
    folder = Store.existing().fitted(run_id)
    (folder / "classifier.json").unlink()
    with pytest.raises(UserError, match=r"holds no whole fit: .* a run of this version wrote"):
        dfolora.load(run_id)
    folder.rmdir()
    with pytest.raises(UserError, match=rf"Run {run_id} \(finished\) left nothing that was fitted"):
        dfolora.load(run_id)


def test_artifacts_elsewhere_are_told(made, monkeypatch):
    folder, run_id, _, _ = made
    store = Store(f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setattr(store, "_local", lambda _place: None)
    with pytest.raises(UserError, match=rf"mlflow artifacts download --run-id {run_id}"):
        store.fitted(run_id)
