"""Jobs on SLURM, held to those of this machine's processes; SLURM is played on one host."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from dfolora.record import Store
from tests import slurm
from tests.commands import command, environment
from tests.pipelines.test_on_ray import _eventually, _journals, assert_same_runs
from tests.servers import TrackingServer

NEEDED = "submitit is not installed: pip install 'dfolora[slurm]'"


def test_extra_that_is_missing_is_told(ended, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert ended("run", "cluster=slurm") == (
        2, "",
        "error: submitit is not installed, which this needs: pip install 'dfolora[slurm]'.\n",
    )  # fmt: skip


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
def test_tasks_go_on_after_a_time_limit_and_a_lost_node(folders, played):
    pytest.importorskip("submitit", reason=NEEDED)
    (here, there), (state, variables) = folders, played
    sweep = ["seed=1,2", "dim=40", "budget=1500", "dev_interval=100"]
    ran = begun(there, variables, *sweep)
    _eventually(lambda: _journals(there, 2, lines=20), ran)
    for process, number in zip(steps(state), (signal.SIGUSR2, signal.SIGKILL), strict=True):
        os.kill(process, number)
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
    _eventually(lambda: _journals(there, 2, lines=2), ran)
    ran.send_signal(signal.SIGINT)
    out, error = ran.communicate(timeout=200)
    assert (ran.returncode, out) == (128 + signal.SIGINT, "")
    assert error.endswith("stopped: what was done is kept; call again to go on\n")
    assert len([*state.glob("*.cancelled")]) == 3
    assert not any(map(psutil.pid_exists, steps(state)))
    store = Store(f"sqlite:///{there}/mlflow.db")
    found = store._client.search_runs(store._experiment_ids())
    assert [run.info.status for run in found] == ["KILLED"] * 2
