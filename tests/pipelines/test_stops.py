"""What stops a run but a kill, what is told then, and that the next call goes on."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from dfolora.record import RunLog, Store
from pipelines.jobs.job import DEFECT, MISTAKE, failure, work
from pipelines.one_run import execute as pipeline
from tests.commands import composed, environment
from tests.forking import forked
from tests.pipelines.test_kill import CURVES
from tests.racing import raced

SMALL = ["budget=120", "dim=40", "dev_interval=20"]


def curves(store):
    (run,) = store.runs().to_dict("records")
    history = store._client.get_metric_history
    return {
        name: [(point.step, point.value) for point in history(run["run_id"], name)]
        for name in CURVES
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The curves of the run that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    config, choices = composed(*SMALL)
    config.tracking.uri = f"sqlite:///{folder}/mlflow.db"
    with chdir(folder):
        assert work(config, choices, "s").ending == "done"
    return curves(Store(config.tracking.uri))


@pytest.fixture
def store(in_folder):
    return Store(f"sqlite:///{in_folder}/mlflow.db")


def again(store, expected):
    """The run goes on, and is the one that nothing stopped."""
    config, choices = composed(*SMALL)
    ended = work(config, choices, "s")
    assert ended.ending == "done", ended.line
    assert curves(store) == expected
    return ended


def stopped_after(monkeypatch, steps, error):
    """Let something raise once so many steps are in the journal."""
    told = pipeline.RunBar.show

    def show(self, progress):
        told(self, progress)
        steps[0] -= 1
        if not steps[0]:
            raise error

    monkeypatch.setattr(pipeline.RunBar, "show", show)


KEPT = "What was done is kept; call again to go on."
ERRORS = [
    (OSError(28, "No space left on device", "journal.jsonl"),
     f"error: [Errno 28] No space left on device: 'journal.jsonl'. {KEPT}"),
    (MemoryError(), f"error: MemoryError. {KEPT}"),
    (pipeline.torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
     f"error: CUDA out of memory. Tried to allocate. {KEPT}"),
    (ZeroDivisionError("division by zero"),
     "error: a defect of ours, ZeroDivisionError: division by zero. HYDRA_FULL_ERROR=1 shows "
     "where."),
]  # fmt: skip


def test_what_goes_wrong_is_one_line(monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    told = [failure(error, KEPT) for error, _ in ERRORS]
    assert [ended.line for ended in told] == [line for _, line in ERRORS]
    assert {(ended.ending, ended.status) for ended in told} == {("failed", DEFECT)}


@pytest.mark.parametrize(("error", "line"), [ERRORS[0], ERRORS[3]], ids=["shortage", "defect"])
def test_after_what_goes_wrong_the_next_call_goes_on(
    error, line, store, expected, in_folder, monkeypatch
):  # fmt: skip
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with monkeypatch.context() as patched:
        stopped_after(patched, [3], error)
        config, choices = composed(*SMALL)
        ended = work(config, choices, "s")
    assert (ended.ending, ended.status, ended.line) == ("failed", DEFECT, line)
    (run,) = store._client.search_runs(store._experiment_ids())
    assert run.info.status == "FAILED"
    (journal,) = in_folder.glob("outputs/*/journal.jsonl")
    assert journal.read_text().count("points") == 3
    again(store, expected)


def test_traceback_comes_when_it_is_asked_for(in_folder, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    stopped_after(monkeypatch, [1], ZeroDivisionError("division by zero"))
    config, choices = composed(*SMALL)
    assert work(config, choices, "s").line.startswith("Traceback (most recent call last):")
    # Also of an error that is not being handled, as Ray's of another process.
    assert failure(KeyError("gone")).line == "KeyError: 'gone'\n"


def test_disk_that_is_really_full_tears_a_line_that_is_dropped(store, expected, in_folder):
    """The system refuses to write past so many bytes of a file, in the middle of a line."""
    child = forked(without_room, *composed(*SMALL))
    child.join()
    assert child.exitcode == 0
    assert "File too large" in (in_folder / "told").read_text()
    (journal,) = in_folder.glob("outputs/*/journal.jsonl")
    *lines, torn = journal.read_bytes().split(b"\n")
    assert [line.count(b"points") for line in lines] == [0, 0, 1]  # train, dev, step
    assert len(torn) == ROOM
    again(store, expected)


def without_room(config, choices):
    pipeline.Store.start = lambda *_arguments, **_options: Silent()
    pipeline.RunBar.show = leave_little_room
    Path("told").write_text(work(config, choices, "s").line[:100])


ROOM = 200
"""Bytes, in which no line has room."""


def leave_little_room(_bar, _progress):
    (journal,) = Path("outputs").glob("*/journal.jsonl")
    room = journal.stat().st_size + ROOM
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))


class Silent:
    """A log that writes nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        return None

    def metrics(self, *_values, **_places):
        pass


def test_store_that_goes_away_takes_the_run_when_it_is_back(
    store,
    expected,
    in_folder,
    monkeypatch,
):
    """No search, no model: what was measured is only recorded."""
    own = pipeline.store_of(store.uri)
    client = own._client

    class Gone:
        def __getattr__(self, name):
            raise MlflowException("connection refused")

    with monkeypatch.context() as patched:
        shown = pipeline.RunBar.show

        def show(self, progress):
            shown(self, progress)
            own._client = Gone()
            for log in logs:
                log._client = own._client

        logs = []
        begin = Store.start

        def start(self, *arguments, **options):
            logs.append(begin(self, *arguments, **options))
            return logs[-1]

        patched.setattr(Store, "start", start)
        patched.setattr(pipeline.RunBar, "show", show)
        config, choices = composed(*SMALL)
        ended = work(config, choices, "s")
    assert (ended.ending, ended.status) == ("failed", DEFECT)
    assert ended.line == (
        "error: The tracking store failed: connection refused. What was done is kept; "
        "call again to go on."
    )
    own._client = client
    assert len(list(in_folder.glob("outputs/*/summary.json"))) == 1
    made_with = pipeline.commit()
    monkeypatch.setattr(pipeline, "commit", lambda: "a later one")
    monkeypatch.setattr(pipeline.Checkpoint, "load_backbone", None)
    monkeypatch.setattr(pipeline.Checkpoint, "load_tokenizer", None)
    again(store, expected)
    assert store.runs()["tags.commit"].tolist() == [made_with]
    assert not list(in_folder.glob("outputs/*"))


@pytest.mark.parametrize("row", ["c_lora", "bitfit"])
def test_run_goes_on_under_another_name_of_its_machine(row, store, in_folder, monkeypatch):
    """Searches continue theirs; what is trained begins anew, and its first run goes."""
    config, choices = composed(f"row={row}", *SMALL)
    killed = KeyboardInterrupt()  # which ``work`` lets pass, as the log does not get to write
    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "__exit__", lambda *_given: None)
        stopped_after(patched, [3], killed)
        with pytest.raises(KeyboardInterrupt):
            work(config, choices, "s")
    (left,) = store._client.search_runs(store._experiment_ids())
    assert left.info.status == "RUNNING"
    monkeypatch.setattr("platform.node", lambda: "another")
    ended = work(config, choices, "s")
    assert ended.ending == "done", ended.line
    (run,) = store._client.search_runs(store._experiment_ids())
    assert run.info.status == "FINISHED"
    assert (run.info.run_id == left.info.run_id) == (row == "c_lora")


def test_run_that_finished_elsewhere_meanwhile_is_not_added(store, in_folder, monkeypatch):
    """As two folders on one server may: the first to end stays, with the names of both."""
    told = pipeline.RunBar.show
    others = []

    def show(self, progress):
        told(self, progress)
        if not others:
            (run,) = store._client.search_runs(store._experiment_ids())
            tags = {"digest": run.data.tags["digest"], "attempt": "a", "place": "elsewhere"}
            with store.start("runs", "other", tags=tags, params={}) as log:
                log.metrics({"test/score": 0.25})
            others.append(log.run_id)

    monkeypatch.setattr(pipeline.RunBar, "show", show)
    config, choices = composed(*SMALL)
    ended = work(config, choices, "s")
    assert ended.ending == "in the store already"
    assert ended.line.endswith(f": in the store already, test 0.250, run {others[0]}")
    (run,) = store._client.search_runs(store._experiment_ids())
    assert (run.info.run_id, run.data.tags["sweep_id"]) == (others[0], "s")
    assert not list(in_folder.glob("outputs/*"))


def test_run_of_another_place_is_left_to_it_at_first(store, in_folder):
    config, choices = composed(*SMALL)
    tags = {"digest": pipeline.Run.checked(config, choices, "s").digest, "place": "elsewhere"}
    assert store.start("runs", "other", tags=tags, params={}).run_id
    assert work(config, choices, "s", patience=0.0).ending == "busy"
    assert work(config, choices, "s", patience=0.1).ending == "done"


def test_folder_that_cannot_be_written_is_told(store, in_folder):
    (in_folder / "outputs").write_text("a file")
    config, choices = composed(*SMALL)
    ended = work(config, choices, "s")
    assert (ended.ending, ended.status) == ("failed", MISTAKE)
    assert "outputs is not a folder" in ended.line


def test_other_library_or_commit_is_not_gone_on_with(store, in_folder, monkeypatch):
    config, choices = composed(*SMALL)
    with monkeypatch.context() as patched:
        stopped_after(patched, [3], OSError("stop"))
        work(config, choices, "s")
    (beginning,) = in_folder.glob("outputs/*/run.json")
    values = json.loads(whole := beginning.read_text())
    values["identity"] |= {"version.cma": "1.0", "code": "other", "commit": "an older one"}
    beginning.write_text(json.dumps(values))
    monkeypatch.setattr(pipeline.Checkpoint, "load_backbone", None)  # told before
    ended = work(config, choices, "s")
    assert ended.status == MISTAKE
    assert "code was other and is " in ended.line
    assert "version.cma was 1.0 and is " in ended.line
    assert "commit" not in ended.line  # which does not matter
    assert ended.line.endswith("or delete the folder to begin the run anew.")
    (journal,) = in_folder.glob("outputs/*/journal.jsonl")
    values["identity"] = json.loads(whole)["identity"]
    beginning.write_text(json.dumps(values))
    journal.write_text("x\n")
    assert "Line 1 of" in work(config, choices, "s").line
    beginning.write_text("{")
    assert "run.json is damaged" in work(config, choices, "s").line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 2)],
    ids=["term", "term two", "int two"],
)
def test_command_that_is_told_to_stop_ends_in_order(tmp_path, number, workers):
    ran = subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", "-m", "dim=40,44", "budget=100000",
         f"workers={workers}"],
        cwd=tmp_path, env=environment(tmp_path), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("outputs/*/journal.jsonl"))) < workers:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(ran.pid, number)  # as a terminal does, and whoever ends a job of a cluster
        out, error = ran.communicate(timeout=60)
    finally:
        ran.kill()
    assert ran.returncode == 128 + number
    assert error == "stopped: what was done is kept; call again to go on\n"
    assert out == ""
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    runs = store._client.search_runs(store._experiment_ids())
    assert [run.info.status for run in runs] == ["KILLED"] * workers


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_job_that_others_are_at_work_on_goes_to_the_end_of_the_queue(workers, in_folder, store):
    config, choices = composed("seed=1", *SMALL)
    with store.alone(pipeline.Run.checked(config, choices, "s").digest, Path("outputs")):
        ran = subprocess.Popen(
            [sys.executable, "-m", "pipelines.run", "-m", "seed=1,2,3", *SMALL,
             f"workers={workers}"],
            cwd=in_folder, env=environment(in_folder), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        first = [ran.stdout.readline() for _ in range(2)]
        assert {line.partition(":")[0][-5:] for line in first} == {"seed2", "seed3"}
    out, error = ran.communicate(timeout=300)
    assert (ran.returncode, error) == (0, "")
    assert out.startswith("[3/3] ")
    assert out.endswith("3 runs: 3 done\n")


@pytest.mark.slow
def test_two_commands_at_once_share_the_jobs_of_one_store(tmp_path):
    command = [sys.executable, "-m", "pipelines.run", "-m", "seed=1,2,3,4", *SMALL]
    ran = [
        subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    texts = [each.communicate(timeout=300) for each in ran]
    assert [each.returncode for each in ran] == [0, 0], texts
    assert sum(out.count(": test 0.") for out, _error in texts) == 4
    assert sum(out.count(": in the store already") for out, _error in texts) == 4
    runs = Store(f"sqlite:///{tmp_path}/mlflow.db").runs()
    assert len(runs) == runs["tags.digest"].nunique() == 4
    assert not list(tmp_path.glob("outputs/*"))


WRITER = """
import sys
from dfolora.record import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(10):
    tags = {"digest": f"{sys.argv[2]}-{number}"}
    with store.start("runs", "a run", tags=tags, params={"p": number}) as log:
        for step in range(20):
            log.metrics({"loss": step}, step=step)
            log.flush()
"""


@pytest.mark.slow
def test_processes_that_write_at_once_lose_nothing(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    Store(uri)
    raced(WRITER, tmp_path, uri, "abcd")
    store = Store(uri)
    runs = store.runs()
    assert len(runs) == runs["tags.digest"].nunique() == 40
    points = store.history(runs["run_id"].tolist(), "loss")
    assert points.groupby("run_id").size().tolist() == [20] * 40
