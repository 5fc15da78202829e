"""The store, on temporary SQLite files: a fresh one is made once, for its making takes seconds."""

import gc
import math
import shutil
import sqlite3
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dfolora.errors import ResourceError, UserError
from dfolora.record import BusyError, Store, direct, runlog
from dfolora.record import store as store_module
from tests.racing import raced

# SQLAlchemy 2.1 on what mlflow 3.17 does.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

RECORDED = {"digest": "d1", "sweep_id": "s1", "task": "sst2"}


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    Store(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:  # what is written may lie beside the file
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
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
    monkeypatch.setattr(runlog, "FLUSH_SECONDS", math.inf)
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
        log.metrics({"loss": 0.5}, step=2)
        assert curve(client, log.run_id, "loss") == []
    monkeypatch.setattr(runlog, "FLUSH_SECONDS", 0.0)
    with begin(store) as log:
        log.metrics({"loss": 1.0}, step=1)
        assert curve(client, log.run_id, "loss") == [(1, 1.0)]
    assert batches == [2, 1]


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


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_run_that_breaks_tells_how_and_keeps_its_points(store, client, error, status):
    log = begin(store)
    log.metrics({"loss": 0.5})
    with pytest.raises(error), log:
        raise error
    run = client.get_run(log.run_id)
    assert run.info.status == status
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
    assert store.tagged("item.table1").empty


def test_tagged_runs_are_found_whatever_became_of_them(store):
    with begin(store, "one", **{"item.table1.mini": "1"}) as finished:
        pass
    with pytest.raises(RuntimeError), begin(store, "two", **{"item.table1.mini": "1"}) as failed:
        raise RuntimeError
    unfinished = begin(store, **{"item.table1.mini": "2"})
    assert unfinished.run_id
    with begin(store, **{"item.table2.mini": "1"}):
        pass
    found = store.tagged("item.table1.mini")
    assert found["run_id"].tolist() == [finished.run_id, failed.run_id, unfinished.run_id]
    assert found["status"].tolist() == ["FINISHED", "FAILED", "RUNNING"]
    assert found["name"].tolist() == ["a run"] * 3
    assert found["tags.item.table1.mini"].tolist() == ["1", "1", "2"]


@pytest.fixture
def asked(monkeypatch):
    """Every search of MLflow's client: how much it asked for, and whether garbage was collected."""
    asked = []
    original = MlflowClient.search_runs

    def search_runs(self, *arguments, **options):
        asked.append((options["max_results"], gc.isenabled()))
        return original(self, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "search_runs", search_runs)
    return asked


def test_tagged_runs_of_a_local_store_are_read_without_mlflows_client(store, asked):
    """Fails where MLflow's tables have another layout: see what is new, then name it."""
    for _ in range(5):
        with begin(store, **{"item.table1.mini": "1"}):
            pass
    asked.clear()
    assert store.tagged("item.table1.mini")["run_id"].nunique() == 5
    assert asked == []


def test_tables_of_another_layout_are_read_by_mlflows_client_in_one_query_a_page(
    store, asked, monkeypatch
):
    for _ in range(5):
        with begin(store, **{"item.table1.mini": "1"}):
            pass
    monkeypatch.setattr(store_module, "RUNS_A_PAGE", 2)
    monkeypatch.setattr(direct, "LAYOUT", "another")
    asked.clear()
    assert store.tagged("item.table1.mini")["run_id"].nunique() == 5
    assert asked == [(2, False)] * 3
    assert gc.isenabled()


def test_tables_tell_what_mlflows_client_tells(store, client, monkeypatch):
    """Of runs of every kind, and none of what was deleted."""
    item = {"item.table1.mini": "2"}
    with begin(store, "one", **item) as finished:
        finished.metrics({"test/score": 0.1, "train/loss": 1e-300, "calls": 6000}, step=5)
        finished.metrics({"test/score": 0.7}, step=9)
    with pytest.raises(RuntimeError), begin(store, "two", **item, note="Ünïcode '\"%") as failed:
        raise RuntimeError
    running = begin(store, "two", **item)
    client.log_metric(running.run_id, "train/loss", math.nan)
    client.log_param(running.run_id, "budget", "500")
    with begin(store, "two", **item) as deleted:
        pass
    client.delete_run(deleted.run_id)
    with begin(store, "gone", **item):
        pass
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with begin(store, "one", **{"item.table2.mini": "2"}):
        pass
    told = store.tagged("item.table1.mini")
    monkeypatch.setattr(direct, "LAYOUT", "another")
    wanted = store.tagged("item.table1.mini")
    assert told["run_id"].tolist() == [finished.run_id, failed.run_id, running.run_id]
    pd.testing.assert_frame_equal(told[sorted(told)], wanted[sorted(wanted)])


def test_history_has_every_point_of_every_run_with_its_seconds(store):
    logs = []
    for loss in (0.5, 0.25):
        with begin(store) as log:
            log.metrics({"train/loss": 1.0}, step=1)
            log.metrics({"train/loss": loss}, step=21)
        logs.append(log.run_id)
    points = store.history(logs, "train/loss")
    assert points["run_id"].tolist() == [logs[0], logs[0], logs[1], logs[1]]
    assert points["step"].tolist() == [1, 21, 1, 21]
    assert points["value"].tolist() == [1.0, 0.5, 1.0, 0.25]
    assert points["seconds"].between(0, 60).all()
    assert store.history(logs, "dev/score").empty


def test_artifact_is_read_back_and_a_missing_one_is_none(store, tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "fitness.png").write_bytes(b"png")
    with begin(store) as log:
        log.artifacts(tmp_path / "outputs")
    with begin(store) as bare:
        pass
    there, missing = store.runs()["artifact_uri"]
    assert store.artifact(there, "fitness.png") == b"png"
    assert store.artifact(missing, "fitness.png") is None
    assert store.artifact(f"mlflow-artifacts:/{bare.run_id}", "fitness.png") is None


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


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a\nb", "/tmp/x", None, 3])
def test_experiment_that_names_no_folder_is_refused(store, name):
    with pytest.raises(UserError, match=r"tracking\.experiment"):
        store.check_experiment(name)


def test_experiment_that_was_deleted_is_told(store, client):
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match="experiment gone was deleted"):
        store.check_experiment("gone")
    store.check_experiment("new")


@pytest.mark.parametrize("uri", ["file:///tmp/x", "mlruns", "/tmp/x", "./x"])
def test_folder_is_no_store(uri):
    with pytest.raises(UserError, match=r"is a folder, .* use sqlite:///"):
        Store(uri)


def attempted(store, key, *, place="here", **tags):
    tags = {**RECORDED, "attempt": key, "place": place, **tags}
    return store.start("runs", "a run", tags=tags, params={"rank": 2}, began=1e9)


def test_run_that_was_broken_off_goes_on_and_holds_each_point_once(store, client):
    log = attempted(store, "a")
    log.metrics({"loss": 1.0}, step=1, seconds=0.5)
    with pytest.raises(SystemExit), log:
        raise SystemExit
    with attempted(store, "a", task="rte") as again:
        assert client.get_run(again.run_id).info.status == "RUNNING"
        again.metrics({"loss": 1.0}, step=1, seconds=0.5)
        again.metrics({"loss": 0.5}, step=2, seconds=0.75)
    assert again.run_id == log.run_id
    assert curve(client, log.run_id, "loss") == [(1, 1.0), (2, 0.5)]
    run = client.get_run(log.run_id)
    assert run.data.tags["task"] == "rte"
    assert run.info.status == "FINISHED"


def test_unfinished_runs_of_other_attempts_are_taken_away(store, client):
    for key in "ab":
        with pytest.raises(RuntimeError), attempted(store, key):
            raise RuntimeError
    with attempted(store, "b", digest="d2") as other, pytest.raises(RuntimeError):
        raise RuntimeError
    with pytest.raises(RuntimeError), attempted(store, "d", place="elsewhere") as living:
        raise RuntimeError  # another machine's may still be at work
    with attempted(store, "c") as log:
        pass
    found = client.search_runs(store._experiment_ids())
    assert {run.info.run_id for run in found} == {log.run_id, other.run_id, living.run_id}
    store.forget({"digest": "d1", "place": "elsewhere"})
    found = client.search_runs(store._experiment_ids())
    assert {run.info.run_id for run in found} == {log.run_id, other.run_id}


def test_attempt_goes_on_under_another_name_of_its_machine(store, client):
    log = attempted(store, "a", place="one")
    assert client.get_run(log.run_id).info.status == "RUNNING"  # as a kill leaves it
    assert not store.runs_elsewhere({"digest": "d1", "attempt": "a", "place": "other"})
    with attempted(store, "a", place="other") as again:
        pass
    assert again.run_id == log.run_id
    (run,) = client.search_runs(store._experiment_ids())
    assert (run.info.status, run.data.tags["place"]) == ("FINISHED", "other")


def test_run_of_another_place_is_seen_while_it_runs(store):
    mine = {"digest": "d1", "place": "here"}
    with attempted(store, "a", place="elsewhere") as log:
        assert log.run_id
        assert store.runs_elsewhere(mine)
        assert not store.runs_elsewhere(mine | {"digest": "d2"})
        assert not store.runs_elsewhere(mine | {"place": "elsewhere"})
    assert not store.runs_elsewhere(mine)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_of_runs_that_finish_in_two_places_the_first_to_end_stays(order, store, client):
    logs = {}
    for place in "ab":
        with attempted(store, place, place=place) as logs[place]:
            pass
        client.set_terminated(logs[place].run_id, end_time=1000 + ord(place))
    tags = {place: {"digest": "d1", "attempt": place, "place": place} for place in "ab"}
    assert {store.settle(tags[place]) for place in order} == {logs["a"].run_id}
    assert store.runs()["run_id"].tolist() == [logs["a"].run_id]
    assert store.finished_run("d1") == logs["a"].run_id


def test_of_runs_that_finish_in_two_places_the_names_of_both_stay(store, client):
    """The second machine's clock is behind: its run stays, though the first's was told."""
    logs = {}
    for place, end in (("a", 2000), ("b", 1000)):
        own = {"place": place, f"item.table{place}.mini": "s1"}
        with attempted(store, place, **own) as logs[place]:
            pass
        client.set_terminated(logs[place].run_id, end_time=end)
        told = store.settle({"digest": "d1", "attempt": place, "place": place})
        assert told == logs[place].run_id
    (run,) = client.search_runs(store._experiment_ids())
    assert run.info.run_id == logs["b"].run_id
    assert {"item.tablea.mini", "item.tableb.mini"} <= run.data.tags.keys()
    assert (run.data.tags["place"], run.data.tags["attempt"]) == ("b", "b")


FINISHER = """
import sys
import mlflow.store.tracking.sqlalchemy_store
from dfolora.record import Store
store, place = Store(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
kept = []
for number in range(10):
    tags = {"digest": f"d{number}", "attempt": place + str(number), "place": place}
    with store.start("runs", "a run", tags=tags, params={}):
        pass
    kept.append(store.settle(tags))
print(*kept)
"""


@pytest.mark.slow
def test_of_runs_that_finish_at_once_one_stays(uri, store, tmp_path):
    """It is one that was told; who settled before all had ended may have told another."""
    outs = raced(FINISHER, tmp_path, uri, "abcd")
    told = {f"d{number}": ids for number, ids in enumerate(zip(*map(str.split, outs), strict=True))}
    stayed = dict(store.runs()[["tags.digest", "run_id"]].itertuples(index=False))
    assert len(store.runs()) == len(stayed)
    assert stayed.keys() == told.keys()
    assert all(run_id in told[digest] for digest, run_id in stayed.items())


def test_command_that_ends_leaves_nothing_running(store, client):
    left = [attempted(store, "a"), attempted(store, "b", digest="d2")]
    other = attempted(store, "c", sweep_id="s2", digest="d3")
    ids = [log.run_id for log in (*left, other)]
    with attempted(store, "d", digest="d2", place="elsewhere") as finished:
        pass
    store.end_sweep("s1")
    found = {
        run.info.run_id: run.info.status for run in client.search_runs(store._experiment_ids())
    }
    assert found == {ids[0]: "KILLED", ids[2]: "RUNNING", finished.run_id: "FINISHED"}


def test_of_two_unfinished_runs_of_an_attempt_one_goes_on(store, client):
    tags = {**RECORDED, "attempt": "a", "place": "here"}
    experiment = store._experiment_id("runs")
    twins = [client.create_run(experiment, tags=tags).info.run_id for _ in range(2)]
    with attempted(store, "a") as log:
        pass
    assert log.run_id in twins
    found = client.search_runs([experiment])
    assert [run.info.run_id for run in found] == [log.run_id]


class Gone:
    """A client that fails as often as it is asked, while it is switched off."""

    def __init__(self, client):
        self.client, self.off = client, True

    def __getattr__(self, name):
        if self.off:
            raise MlflowException("gone")
        return getattr(self.client, name)


def test_store_that_fails_on_the_way_gets_all_in_the_end(store, client, monkeypatch):
    monkeypatch.setattr(runlog, "RETRY_SECONDS", math.inf)
    gone = store._client = Gone(store._client)
    log = begin(store)
    with pytest.warns(RuntimeWarning, match="failed: gone"):
        log.__enter__()
    for step in range(3):
        log.metrics({"loss": step}, step=step)
    gone.off = False
    log.__exit__(None, None, None)
    assert curve(client, log.run_id, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert client.get_run(log.run_id).info.status == "FINISHED"


def test_store_that_fails_to_the_end_is_told(store):
    store._client = Gone(store._client)
    with (
        pytest.warns(RuntimeWarning, match="failed: gone"),
        pytest.raises(ResourceError, match="The tracking store failed: gone"),
        begin(store) as log,
    ):
        log.metrics({"loss": 1.0})
    with pytest.warns(RuntimeWarning), pytest.raises(KeyError), begin(store):
        raise KeyError  # what was raised is not hidden


def test_clock_that_goes_back_moves_no_point_and_no_end(store, client, monkeypatch):
    log = begin(store)
    monkeypatch.setattr(time, "time", lambda: 1.0)
    with log:
        log.metrics({"loss": 1.0}, seconds=2.0)
    run = client.get_run(log.run_id)
    (point,) = client.get_metric_history(log.run_id, "loss")
    assert point.timestamp == run.info.start_time + 2000 == run.info.end_time


def test_same_run_is_worked_on_by_one_process_at_a_time(store, tmp_path):
    with store.alone("d1", tmp_path / "unused"):
        other = FileLock(tmp_path / "mlruns" / "locks" / "d1")
        with pytest.raises(Timeout):
            other.acquire(timeout=0)
        with pytest.raises(BusyError), store.alone("d1", tmp_path / "unused", patience=0.1):
            pass
        with store.alone("d2", tmp_path / "unused"):
            pass
    other.acquire(timeout=0)
    other.release()
    assert not (tmp_path / "unused").exists()


def test_readers_and_a_writer_work_at_once(store, uri):
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"), timeout=0)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert Store(uri).finished_run("d1") is None


@pytest.mark.parametrize("name", ["a file/mlflow.db", "no database", "."])
def test_file_that_cannot_be_a_store(tmp_path, name):
    (tmp_path / "a file").write_text("x")
    (tmp_path / "no database").write_text("x" * 5000)
    with pytest.raises(
        UserError, match=r"cannot be used: .+\. Set MLFLOW_TRACKING_URI to another one"
    ):
        Store(f"sqlite:///{tmp_path / name}")


def test_scheme_that_no_store_has():
    with pytest.raises(UserError, match=r"The tracking store nonsense://x cannot be used: .*URI"):
        Store("nonsense://x")


RACER = """
import sys
import mlflow.store.tracking.sqlalchemy_store  # what takes long, before the start signal
from dfolora.record import Store
print("ready", flush=True)
sys.stdin.readline()
with Store(sys.argv[1]).start("runs", "a run", tags={"who": sys.argv[2]}, params={}) as log:
    log.metrics({"loss": 1.0})
"""


def test_two_processes_may_create_a_store_at_once(tmp_path, monkeypatch):
    """Some ten seconds: both import mlflow, and one of them makes the tables."""
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    raced(RACER, tmp_path, uri, "ab")
    assert sorted(Store(uri).runs()["tags.who"]) == ["a", "b"]
    assert not (Path(tmp_path) / "mlflow.db").exists()  # nothing beside the named file


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite://", r"is in memory and would end with this command; use sqlite:///mlflow\.db"),
        ("sqlite:///", "is in memory"),
        ("sqlite:///:memory:", "is in memory"),
        ("sqlite:///file::memory:?cache=shared&mode=memory&uri=true", "is in memory"),
        ("sqlite:///file:runs.db?uri=true", r"by an address of its own; use sqlite:///runs\.db"),
        ("file:./mlruns", r"is a folder, .*; use sqlite:///mlruns/mlflow\.db, or a server"),
        ("file:///data/mlruns", r"is a folder, .*; use sqlite:////data/mlruns/mlflow\.db"),
        ("mlruns", r"is a folder, .*; use sqlite:///mlruns/mlflow\.db"),
    ],
)
def test_stores_that_keep_nothing_or_wrongly_are_refused(uri, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        Store(uri)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("uri", "package"),
    [
        ("postgresql://u:p@127.0.0.1:1/db", r"psycopg\[binary\]"),
        ("postgresql+psycopg2://u:p@127.0.0.1:1/db", "psycopg2-binary"),
        ("mysql://u:p@127.0.0.1:1/db", "mysqlclient"),
        ("mysql+pymysql://u:p@127.0.0.1:1/db", "pymysql"),
    ],
)
def test_missing_drivers_are_told_with_what_to_install(uri, package):
    name = package.split("[")[0].split("\\")[0].removesuffix("-binary")
    if find_spec({"mysqlclient": "MySQLdb"}.get(name, name)) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(UserError, match=rf"which is not installed: pip install '{package}'\."):
        Store(uri)


@pytest.mark.parametrize(
    ("said", "suspected"),
    [
        ("too many 500 error responses", True),
        ("('Connection aborted.', RemoteDisconnected('Remote end closed connection'))", True),
        ("connection refused by http://host/artifacts/1/a500b/journal.jsonl", False),
    ],
)
def test_disk_of_the_files_is_suspected_where_the_server_says_500_or_hangs_up(
    store, tmp_path, monkeypatch, said, suspected
):
    """Not where an address has these figures, nor where nobody answers."""

    def refuse(*_given):
        raise MlflowException(said)

    monkeypatch.setattr(MlflowClient, "log_artifacts", refuse)
    advice = "; look whether the disk of the run's files is full" * suspected
    with (
        pytest.raises(ResourceError) as told,
        store.start("runs", "run", tags=RECORDED, params={}) as log,
    ):
        log.artifacts(tmp_path)
    assert str(told.value) == f"The tracking store failed: {said}{advice}."
