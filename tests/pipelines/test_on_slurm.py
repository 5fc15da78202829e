"""Jobs on SLURM, held to those of this machine's processes; SLURM is played on one host."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from threading import active_count
from types import SimpleNamespace

import psutil
import pytest

from dfolora.errors import ResourceError
from dfolora.record import Store
from pipelines.jobs import on_slurm
from pipelines.jobs.job import SWEPT
from tests import slurm
from tests.commands import command, composed, environment
from tests.servers import TrackingServer
from tests.sweeps import assert_same_runs, eventually, journals

NEEDED = "submitit is not installed: pip install 'dfolora[slurm]'"


@pytest.mark.parametrize(
    ("value", "least"),
    [
        ("timeout_min=soon", 1),
        ("timeout_min=0", 1),
        ("timeouts=-1", 0),
        ("cpus=two", 1),
        ("gpus=true", 0),
        ("at_once=0", 1),
    ],
)
def test_number_that_is_none_is_told(ended, value, least):
    said = value.replace("true", "True")
    assert ended("run", "cluster=slurm", f"cluster.{value}") == (
        2, "", f"error: cluster.{said} must be a whole number, {least} or more.\n"
    )  # fmt: skip


def test_store_that_is_a_file_is_refused(ended, tmp_path):
    pytest.importorskip("submitit", reason=NEEDED)
    assert ended("run", "cluster=slurm") == (
        2, "",
        f"error: SLURM's machines would write to the tracking store sqlite:///{tmp_path}/mlflow.db,"
        f" a file, which one machine alone can use. Set MLFLOW_TRACKING_URI to the address of a "
        f"tracking server.\n",
    )  # fmt: skip


def test_machine_without_slurm_is_told(ended, monkeypatch):
    pytest.importorskip("submitit", reason=NEEDED)
    monkeypatch.setenv("PATH", "")
    elsewhere = "tracking.uri=http://127.0.0.1:9"
    status, out, error = ended("run", "cluster=slurm", elsewhere)
    assert (status, out) == (2, "")
    assert error.startswith("error: cluster=slurm takes no jobs here: ")
    assert "srun" in error


class Asked:
    """A task of ``Executor``'s, that never ends by itself."""

    cancelled = False

    def cancel(self, check):
        self.cancelled = True

    def done(self, force=False):
        return self.cancelled


class Executor:
    """Plays submitit's; ``meanwhile`` happens once an array is submitted."""

    def __init__(self, meanwhile=lambda: None):
        self.tasks, self._meanwhile, self._batch = [], meanwhile, False

    def update_parameters(self, **_parameters):
        pass

    @contextmanager
    def batch(self):
        self._batch = True
        yield
        self._batch = False
        self._meanwhile()

    def submit(self, _task):
        if not self._batch:
            raise RuntimeError("sbatch: error: the queue is full\nand more")
        self.tasks.append(Asked())
        return self.tasks[-1]


@pytest.fixture
def hired(monkeypatch):
    """A crew of two jobs, whom an executor has."""
    config = composed()[0]
    jobs = [(config, {SWEPT: f"seed={seed}"}, "s1") for seed in (1, 2)]
    ended = []
    monkeypatch.setattr(on_slurm, "end_runs", lambda _config, sweep: ended.append(sweep))
    monkeypatch.setattr(on_slurm, "POLL_SECONDS", 0.01)

    @contextmanager
    def hired(executor):
        played = SimpleNamespace(AutoExecutor=lambda *_given, **_named: executor)
        monkeypatch.setitem(sys.modules, "submitit", played)
        crew, threads = on_slurm.OnSlurm("local"), active_count()
        try:
            with crew.hired(jobs, show=None) as submit:
                yield crew, jobs, submit
        finally:
            assert active_count() == threads
            assert ended == ["s1"]

    return hired


def test_job_that_slurm_does_not_take_again_is_lost_alone(hired):
    with hired(executor := Executor()) as (crew, jobs, submit):
        first, _second = (submit(job, 0.0) for job in jobs)
        again = submit(jobs[0], 10.0)
        assert not first.done()
        lost = crew.lost(jobs[0], again.exception())
    assert (lost.ending, lost.status) == ("failed", 1)
    assert lost.line.endswith("submitit says: sbatch: error: the queue is full Its job: seed=1.")
    assert not any(task.cancelled for task in executor.tasks)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_that_comes_while_jobs_are_submitted_leaves_none(hired, number):
    def stop(number, _frame):
        sys.exit(128 + number)

    theirs = signal.signal(number, stop)
    executor = Executor(meanwhile=lambda: signal.raise_signal(number))
    try:
        with pytest.raises(SystemExit) as end, hired(executor):
            raise AssertionError("it went on")
    finally:
        signal.signal(number, theirs)
    assert end.value.code == 128 + number
    assert [task.cancelled for task in executor.tasks] == [True, True]


@pytest.fixture
def task(monkeypatch, tmp_path):
    """A job in the process of a task; submitit's signal ends it with -1."""
    pytest.importorskip("submitit", reason=NEEDED)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    theirs = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(on_slurm, "work", lambda *_job, patience: signal.raise_signal(patience))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_PLAYED", str(tmp_path))
    monkeypatch.setenv("PATH", slurm.install(tmp_path)["PATH"])
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    signal.signal(signal.SIGUSR2, lambda *_given: sys.exit(-1))
    yield on_slurm.Task(tmp_path, (None, {}, "s1"), signal.SIGTERM)
    for number, handler in zip(numbers, theirs, strict=True):
        signal.signal(number, handler)


def test_cancelled_task_ends_at_once(task):
    (task.folder / "7.cancelled").touch()
    with pytest.raises(SystemExit) as end:
        task()
    assert end.value.code == 128 + signal.SIGTERM


def test_preempted_task_queues_itself_again(task):
    """SLURM need not send submitit's signal, and does not queue what ended by itself."""
    with pytest.raises(SystemExit) as end:
        task()
    assert end.value.code == -1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_task_whose_time_limits_are_used_up_says_so(task):
    from submitit.core.utils import UncompletedJobError

    def give_up(*_given):
        raise UncompletedJobError("Job not requeued because: timed-out too many times.")

    signal.signal(signal.SIGUSR2, give_up)
    with pytest.raises(ResourceError, match=r"raise cluster\.timeout_min or cluster\.timeouts"):
        replace(task, patience=signal.SIGUSR2)()


@pytest.fixture
def folders(tmp_path):
    """Where this machine's processes run the jobs, and where SLURM does."""
    made = tmp_path / "here", tmp_path / "slurm"
    for folder in made:
        folder.mkdir()
    return made


@pytest.fixture
def server(folders):
    """A tracking server, whose store is where it would be without one."""
    _, there = folders
    server = TrackingServer(f"sqlite:///{there}/mlflow.db", there)
    server.start()
    yield server
    server.end()


@pytest.fixture
def played(tmp_path, server):
    """The state of a SLURM, and the variables with which it is found, and a tracking server."""
    folder = tmp_path / "played"
    folder.mkdir()
    return folder, slurm.install(folder) | {"MLFLOW_TRACKING_URI": server.uri}


@pytest.mark.slow
def test_submitit_gives_what_processes_give(folders):
    """A job that fails included: its line, the status, the summary."""
    pytest.importorskip("submitit", reason=NEEDED)
    sweep = ["-m", "dim=42,40", "budget=25", "dev_interval=20"]
    local = ["cluster=slurm", "cluster.executor=local"]
    for folder, how in zip(folders, ([], local), strict=True):
        done = command(folder, "run", *sweep, *how)
        assert done.returncode == 2, done.stderr
        assert "error: dim=42 " in done.stderr
        assert "Its job: dim=42." in done.stderr
        assert done.stdout.endswith("2 runs: 1 done, 1 failed\n")
    assert_same_runs(*folders)


def begun(folder, variables, *sweep):
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", "-m", *sweep, "cluster=slurm"],
        cwd=folder, env=environment(folder) | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def steps(state):
    """The processes of an array's tasks, in their order."""
    return [int(path.read_text()) for path in sorted(state.glob("*.step"))]


@pytest.mark.slow
def test_tasks_go_on_after_being_preempted_and_a_lost_node(folders, played):
    pytest.importorskip("submitit", reason=NEEDED)
    (here, there), (state, variables) = folders, played
    sweep = ["seed=1,2", "dim=40", "budget=1500", "dev_interval=100"]
    ran = begun(there, variables, *sweep)
    eventually(lambda: journals(there, 2, lines=20), ran)
    preempted, lost = steps(state)
    os.kill(lost, signal.SIGKILL)
    os.kill(preempted, signal.SIGTERM)
    out, error = ran.communicate(timeout=400)
    assert ran.returncode == 0, error
    assert out.endswith("2 runs: 2 done\n")
    assert [path.read_text().count("begun") for path in state.glob("*.starts")] == [2, 2]
    assert command(here, "run", "-m", *sweep).returncode == 0
    assert_same_runs(here, there)


@pytest.mark.slow
def test_interrupted_command_leaves_no_task(folders, played):
    pytest.importorskip("submitit", reason=NEEDED)
    (_, there), (state, variables) = folders, played
    ran = begun(there, variables, "seed=1,2,3", "dim=40", "budget=100000", "cluster.at_once=2")
    eventually(lambda: journals(there, 2, lines=2), ran)
    ran.send_signal(signal.SIGINT)
    out, error = ran.communicate(timeout=200)
    assert (ran.returncode, out) == (128 + signal.SIGINT, "")
    assert error.endswith("stopped: what was done is kept; call again to go on\n")
    assert len([*state.glob("*.cancelled")]) == 3
    assert not [*state.glob("*.killed")]
    assert not any(map(psutil.pid_exists, steps(state)))
    store = Store(f"sqlite:///{there}/mlflow.db")
    found = store._client.search_runs(store._experiment_ids())
    assert [run.info.status for run in found] == ["KILLED"] * 2
