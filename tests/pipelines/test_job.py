"""Jobs in processes side by side: the same results, one run each, failures told."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import cycle, islice
from types import SimpleNamespace

import numpy as np
import psutil
import pynvml
import pytest

from dfolora.errors import UserError
from dfolora.record import Store
from pipelines.jobs.crew import PATIENCE, share_out
from pipelines.jobs.job import DEFECT, MISTAKE, JobResult
from pipelines.jobs.processes import GPUS, THREADS, Processes, alone, visible_gpus, worker_pool
from pipelines.progress import RunBar
from tests.commands import command, composed, environment

SWEEP = ["-m", "row=manual_prompt,c_lora,f_lora", "seed=8,13", "budget=25", "dim=40"]


@pytest.mark.slow
def test_two_workers_give_what_one_gives_and_run_nothing_twice(tmp_path):
    stores = {}
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        ran = command(folder, "run", *SWEEP, f"workers={workers}")
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.endswith("6 runs: 5 done, 1 in the store already\n")
        places = [line.partition("]")[0] for line in ran.stdout.splitlines()[:-1]]
        assert places == [f"[{number}/6" for number in range(1, 7)]
        runs = Store(f"sqlite:///{folder}/mlflow.db").runs().sort_values("tags.digest")
        assert len(runs) == 5  # the prompt, which knows no seed, was asked for twice
        assert not list((folder / "mlruns" / "locks").iterdir())
        stores[workers] = runs
    one, two = stores[1], stores[2]
    assert list(one["tags.digest"]) == list(two["tags.digest"])
    for metric in ("train/loss", "test/score", "dev/selected_score"):
        np.testing.assert_array_equal(one[f"metrics.{metric}"], two[f"metrics.{metric}"])


@pytest.mark.slow
def test_mistake_of_one_job_leaves_the_other_workers_going(tmp_path):
    ran = command(tmp_path, "run", "-m", "dim=42,40,41", "budget=25", "workers=2")
    assert ran.returncode == 2
    assert ran.stderr.count("error: dim=4") == 2
    assert ran.stdout.endswith("3 runs: 1 done, 2 failed\n")


def test_status_is_that_of_the_gravest_failure(ended, monkeypatch):
    def execute(config, *_given, **_shown):
        raise UserError("given wrong") if config.dim == 40 else ZeroDivisionError("ours")

    monkeypatch.setattr("pipelines.one_run.execute.execute", execute)
    for dims, expected in (("40,44", DEFECT), ("40,40", MISTAKE), ("44,40", DEFECT)):
        status, out, error = ended("run", "-m", f"dim={dims}", "seed=1")
        assert (status, out) == (expected, "2 runs: 2 failed\n")
        assert "[1/2] error: " in error
        job = "" if dims == "40,40" else " Its job: dim=40."
        assert (f"[2/2] error: given wrong.{job}\n" in error) == dims.endswith("40")


def test_workers_that_are_no_number_are_refused(ended):
    told = ended("run", "-m", "dim=40,44", "workers=many")
    assert told == (2, "", "error: workers=many must be a whole number, 1 or more.\n")


@pytest.mark.slow
def test_killed_worker_takes_no_job_with_it(tmp_path):
    ran = subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", "-m", "dim=40,44,48", "budget=1500", "workers=2"],
        cwd=tmp_path, env=environment(tmp_path), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        _eventually(lambda: next(tmp_path.glob("outputs/*/journal.jsonl"), None))
        _spawned(ran.pid)[0].kill()
        out, error = ran.communicate(timeout=200)
    finally:
        ran.kill()
    assert (ran.returncode, error) == (0, "")
    assert out.endswith("3 runs: 3 done\n")
    assert len(Store(f"sqlite:///{tmp_path}/mlflow.db").runs()) == 3


def _kill_oneself(*_given):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_job_that_kills_its_own_process_is_told_as_a_failure(monkeypatch):
    monkeypatch.delenv(THREADS, raising=False)
    monkeypatch.setattr("pipelines.jobs.processes.work_in_pool", _kill_oneself)
    ended = alone(None, {}, "s")
    assert (ended.ending, ended.status) == ("failed", DEFECT)
    assert "killed" in ended.line


ASKED_TO_END_IN_A_CALLBACK = """
import signal, time, weakref
from pipelines.jobs.job import exit_on_signals

class Thing: pass

exit_on_signals()
thing = Thing()
seen = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
try:
    del thing
    time.sleep(60)
finally:
    print("left in order")
"""


def test_exit_that_a_callback_swallows_comes_after_it(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", ASKED_TO_END_IN_A_CALLBACK], env=environment(tmp_path),
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (128 + signal.SIGTERM, "left in order\n", "")


@pytest.mark.slow
def test_workers_end_when_the_command_is_killed(tmp_path):
    arguments = ["-m", "dim=40,44,48,52", "budget=100000", "workers=2"]
    ran = subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", *arguments],
        cwd=tmp_path, env=environment(tmp_path),
    )  # fmt: skip
    try:
        children = _eventually(lambda: _spawned(ran.pid))
    finally:
        ran.kill()
        ran.wait()
    assert len(psutil.wait_procs(children, timeout=30)[0]) == 2


def _spawned(pid):
    """The two workers, not the tracker of their resources."""
    children = psutil.Process(pid).children()
    found = [child for child in children if any("spawn_main" in word for word in child.cmdline())]
    return found if len(found) == 2 else None


def _eventually(found, seconds=200.0):
    for _ in range(int(seconds / 0.1)):
        if (value := found()) is not None:
            return value
        time.sleep(0.1)
    raise AssertionError("it never came")


@pytest.mark.parametrize(("cluster", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_extra_that_is_missing_is_told(ended, monkeypatch, cluster, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert ended("run", f"cluster={cluster}") == (
        2, "",
        f"error: {package} is not installed, which this needs: pip install 'dfolora[{cluster}]'.\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("0, 2", ["0", "2"]), ("3", ["3"]), ("GPU-a,MIG-b", ["GPU-a", "MIG-b"]),
        ("1,-1,0", ["1"]), ("-1", []), ("", []),
    ],
)  # fmt: skip
def test_gpus_are_those_that_the_user_lets_be_seen(given, expected, monkeypatch):
    monkeypatch.setenv(GPUS, given)
    assert visible_gpus() == expected


def test_gpus_are_all_of_the_driver_where_the_user_says_nothing(monkeypatch):
    monkeypatch.delenv(GPUS, raising=False)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda number: number)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: f"GPU-{handle}")
    assert visible_gpus() == ["GPU-0", "GPU-1"]

    def absent():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert visible_gpus() == []


SHARED = {  # GPUs, workers, the jobs' devices -> each worker's, each job's share
    "a GPU each": ("5,6", 2, ["auto", "cuda", "auto"], ["5", "6"], 0.8),
    "two on one": ("5,6", 3, ["auto"] * 3, ["5", "6", "5"], 0.4),
    "more workers than jobs": ("5,6", 9, ["auto"] * 2, ["5", "6"], 0.8),
    "one that is named": ("5,6", 2, ["auto", "cuda:1"], None, 0.4),
    "none": ("", 2, ["auto"] * 2, None, 0.8),
}


@pytest.mark.parametrize("case", SHARED)
def test_workers_take_gpus_in_turn_and_share_what_is_free(case, monkeypatch):
    visible, workers, devices, seen, share = SHARED[case]
    pools, shares = [], []

    @contextmanager
    def pool(count, gpus):
        pools.append((count, list(gpus)))
        yield SimpleNamespace(submit=submit)

    def submit(_work, config, *_others):
        shares.append(config.engine.free_share)
        return ended_as("done")

    monkeypatch.setenv(GPUS, visible)
    monkeypatch.setattr("pipelines.jobs.processes.worker_pool", pool)
    configs = [composed(f"device={device}")[0] for device in devices]
    jobs = [(config, {}, "s") for config in configs]
    share_out(jobs, Processes(workers), lambda _result: None, RunBar)
    ((count, gpus),) = pools
    assert count == min(workers, len(devices))
    assert gpus == ([] if seen is None else visible.split(","))
    assert shares == [share] * len(devices)
    if seen is not None:
        assert [*islice(cycle(gpus), count)] == seen


@pytest.mark.slow
def test_each_worker_sees_its_own_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv(GPUS, "5,6")
    with worker_pool(2, ["5", "6"]) as pool:
        seen = set()
        while len(seen) < 2:  # one process may be the faster
            seen |= set(pool.map(os.getenv, [GPUS] * 8))
    assert seen == {"5", "6"}
    assert os.environ[GPUS] == "5,6"


def ended_as(ending):
    job = Future()
    job.set_result(JobResult(ending=ending, line=ending))
    return job


def test_busy_job_waits_at_the_end_of_the_queue():
    """As long as it takes; a job with no result is the crew's."""
    endings = {"a": ["busy", "busy", "done"], "b": ["failed"], "c": [], "d": ["done"]}
    asked, told = [], []

    class Crew:
        @contextmanager
        def hired(self, _jobs, _show):
            yield self.submit

        def submit(self, job, patience):
            asked.append((job, patience))
            if endings[job]:
                return ended_as(endings[job].pop(0))
            broken = Future()
            broken.set_exception(OSError("gone"))
            return broken

        def lost(self, job, error):
            return JobResult(ending="failed", line=f"{job}: {error}")

    share_out(list("abcd"), Crew(), lambda result: told.append(result.line), RunBar)
    assert asked == [
        ("a", 0.0), ("b", 0.0), ("c", 0.0), ("d", 0.0), ("a", PATIENCE), ("a", PATIENCE),
    ]  # fmt: skip
    assert told == ["failed", "c: gone", "done", "done"]


def test_workers_on_a_cluster_are_refused(ended):
    status, out, error = ended("run", "-m", "workers=2", "cluster=ray", "seed=1,2")
    assert (status, out) == (2, "")
    assert error.startswith(
        "error: workers=2 are processes of this machine, and go with cluster=none"
    )


def test_jobs_of_several_stores_are_refused(ended):
    assert ended("run", "-m", "tracking.uri=sqlite:///a.db,sqlite:///b.db") == (
        2, "", "error: tracking.uri differs between the jobs; call once for each store.\n",
    )  # fmt: skip


def test_jobs_that_do_not_agree_on_who_does_them_are_refused(ended):
    told = ended("run", "-m", "workers=1,2")
    assert told == (
        2, "", "error: cluster and workers differ between the jobs; give each one value.\n",
    )  # fmt: skip
