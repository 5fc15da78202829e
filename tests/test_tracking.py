"""The store, on temporary SQLite files: a fresh one is made once, for its making takes seconds."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dfolora import tracking
from dfolora.errors import UserError
from dfolora.tracking import Store

# SQLAlchemy 2.1 on what mlflow 3.17 does.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

RECORDED = {"digest": "d1", "sweep_id": "s1", "task": "sst2"}


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    Store(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(migrated, tmp_path, monkeypatch):
    shutil.copy(migrated, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # Store.runs sets it; taken back afterwards
    monkeypatch.chdir(tmp_path)
    return uri


@pytest.fixture
def store(uri):
    return Store(uri)


@pytest.fixture
def client(uri):
    """A second look at the same file, by mlflow alone."""
    return MlflowClient(uri)


@pytest.fixture
def batches(monkeypatch):
    """Every ``log_batch`` of metrics, as its number of points."""
    sizes = []
    original = MlflowClient.log_batch

    def log_batch(self, run_id, metrics=(), **rest):
        if metrics:
            sizes.append(len(metrics))
        return original(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", math.inf)
    return sizes


def begin(store, experiment="runs", **tags):
    return store.start(experiment, "a run", tags={**RECORDED, **tags}, params={"rank": 2})


def curve(client, run_id, key):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def test_curves_are_complete_and_in_order_over_several_batches(store, client, batches):
    losses = [1 / (step + 1) for step in range(1250)]
    with begin(store) as log:
        for step, loss in enumerate(losses):
            log.metrics({"train/loss": loss, "dev/score": -loss}, step=step)
    assert len(batches) == 3
    assert curve(client, log.run_id, "train/loss") == list(enumerate(losses))
    assert curve(client, log.run_id, "dev/score") == [(n, -x) for n, x in enumerate(losses)]


def test_search_of_300_generations_takes_few_batches(store, batches):
    """A point written alone costs as much as a batch: 8 curves of 300 points, 3 writes."""
    with begin(store) as log:
        for step in range(300):
            log.metrics({f"curve/{n}": step + n for n in range(8)}, step=step)
    assert batches == [1000, 1000, 400]


def test_points_are_written_on_the_way_and_once(store, client, batches, monkeypatch):
    with begin(store) as log:
        log.metrics({"loss": 1.0}, step=1)
        assert curve(client, log.run_id, "loss") == []
        monkeypatch.setattr(tracking, "FLUSH_SECONDS", -1.0)
        log.metrics({"loss": 0.5}, step=2)
        assert curve(client, log.run_id, "loss") == [(1, 1.0), (2, 0.5)]
    assert batches == [2]


def test_nan_is_left_out(store, client):
    with begin(store) as log:
        log.metrics({"step_size": math.nan, "loss": 0.5})
    assert client.get_run(log.run_id).data.metrics == {"loss": 0.5}


def test_run_keeps_what_it_was_given(store, client):
    params = {f"p{n}": n for n in range(250)}  # more than one batch
    tags = {"digest": "d1", "commit": "abc"}
    with store.start("table1", "sst2-cma", tags=tags, params=params) as log:
        pass
    run = client.get_run(log.run_id)
    assert run.data.params == {name: str(value) for name, value in params.items()}
    assert run.info.run_name == "sst2-cma"
    assert run.data.tags.items() >= tags.items()
    assert client.get_experiment(run.info.experiment_id).name == "table1"


def test_run_that_ends_is_finished(store, client):
    with begin(store) as log:
        assert client.get_run(log.run_id).info.status == "RUNNING"
    assert client.get_run(log.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_run_that_breaks_is_failed_and_keeps_its_points(store, client, error):
    log = begin(store)
    log.metrics({"loss": 0.5})
    with pytest.raises(error), log:
        raise error
    run = client.get_run(log.run_id)
    assert run.info.status == "FAILED"
    assert run.data.metrics == {"loss": 0.5}


def test_only_finished_runs_are_found_by_their_digest(store):
    assert store.finished_run("d1") is None
    with pytest.raises(RuntimeError), begin(store):
        raise RuntimeError
    assert store.finished_run("d1") is None
    with begin(store) as log:
        assert store.finished_run("d1") is None  # still running
    with begin(store, "elsewhere", digest="d2") as other:
        pass
    assert store.finished_run("d1") == log.run_id
    assert store.finished_run("d2") == other.run_id  # in whatever experiment
    assert store.finished_run("d3") is None


def test_tags_can_be_added_later_and_replaced(store, client):
    with begin(store) as log:
        pass
    store.tag(log.run_id, {"item.table1": "1"})
    store.tag(log.run_id, {"item.table1": "2", "item.table2": "2"})
    tags = client.get_run(log.run_id).data.tags
    assert tags.items() >= {**RECORDED, "item.table1": "2", "item.table2": "2"}.items()


def test_artifacts_lie_beside_the_file(store, client, tmp_path):
    folder = tmp_path / "outputs"
    (folder / "adapter").mkdir(parents=True)
    (folder / "journal.jsonl").write_text("{}\n")
    (folder / "adapter" / "weights").write_bytes(b"\x00\x01")
    with begin(store, "table1") as log:
        log.artifacts(folder)
    location = tmp_path / "mlruns" / "table1" / log.run_id / "artifacts"
    assert (location / "journal.jsonl").read_text() == "{}\n"
    assert (location / "adapter" / "weights").read_bytes() == b"\x00\x01"
    assert {item.path for item in client.list_artifacts(log.run_id)} == {"journal.jsonl", "adapter"}


def test_frame_has_the_finished_runs_of_all_experiments_oldest_first(store):
    with begin(store, "one") as first:
        first.metrics({"test/score": 0.5})
    with begin(store, "two", task="rte") as second:
        second.metrics({"test/score": 0.75})
    with pytest.raises(RuntimeError), begin(store):
        raise RuntimeError
    runs = store.runs()
    assert runs["run_id"].tolist() == [first.run_id, second.run_id]
    assert runs["tags.task"].tolist() == ["sst2", "rte"]
    assert runs["metrics.test/score"].tolist() == [0.5, 0.75]
    assert runs["params.rank"].tolist() == ["2", "2"]


def test_fresh_store_has_no_runs(store):
    assert store.runs().empty


def test_opening_a_store_again_keeps_its_runs(store, uri):
    with begin(store) as log:
        pass
    assert Store(uri).finished_run("d1") == log.run_id


def test_experiment_that_another_process_just_made_is_used(store, client, monkeypatch):
    made = client.create_experiment("runs")
    answers = [lambda name: None]  # what this process saw a moment ago
    look = MlflowClient.get_experiment_by_name

    def late(self, name):
        return answers.pop()(name) if answers else look(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    with begin(store) as log:
        pass
    assert client.get_run(log.run_id).info.experiment_id == made


def test_experiment_that_cannot_be_made_is_an_error(store):
    with pytest.raises(MlflowException):
        begin(store, "")


@pytest.mark.parametrize("name", ["a file/mlflow.db", "no database", "."])
def test_file_that_cannot_be_a_store(tmp_path, name):
    (tmp_path / "a file").write_text("x")
    (tmp_path / "no database").write_text("x" * 5000)
    with pytest.raises(UserError, match=r"cannot be used: .+\. Set MLFLOW_TRACKING_URI to one"):
        Store(f"sqlite:///{tmp_path / name}")


def test_scheme_that_no_store_has():
    with pytest.raises(UserError, match=r"The tracking store nonsense://x cannot be used: .*URI"):
        Store("nonsense://x")


RACER = """
import sys
import mlflow.store.tracking.sqlalchemy_store  # what takes long, before the start signal
from dfolora.tracking import Store
print("ready", flush=True)
sys.stdin.readline()
with Store(sys.argv[1]).start("runs", "a run", tags={"who": sys.argv[2]}, params={}) as log:
    log.metrics({"loss": 1.0})
"""


def test_two_processes_may_create_a_store_at_once(tmp_path, monkeypatch):
    """Some ten seconds: both import mlflow, and one of them makes the tables."""
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, uri, who],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for who in ("a", "b")
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n", racer.stderr.read()
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    errors = [racer.communicate(timeout=300)[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], "\n".join(errors)
    assert sorted(Store(uri).runs()["tags.who"]) == ["a", "b"]
    assert not (Path(tmp_path) / "mlflow.db").exists()  # nothing beside the named file
