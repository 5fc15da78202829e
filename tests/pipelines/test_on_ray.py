"""Jobs on Ray, held to those of this machine's processes; nodes are simulated on one host."""

import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from dfolora.errors import UserError
from dfolora.record import Store
from pipelines.jobs import on_ray
from tests.commands import command, composed, environment
from tests.sweeps import assert_same_runs, eventually, journals

SMALL = ["budget=120", "dim=40", "dev_interval=20"]


@pytest.mark.parametrize(
    ("value", "needed"),
    [
        ("num_cpus=two", "a whole number, 1 or more"),
        ("num_cpus=0", "a whole number, 1 or more"),
        ("num_gpus=one", "0 or a positive number"),
        ("num_gpus=1.5", "a whole number, 0 or more"),
        ("retries=-1", "a whole number, 0 or more"),
    ],
)
def test_number_that_is_none_is_told(ended, value, needed):
    assert ended("run", "cluster=ray", f"cluster.{value}") == (
        2, "", f"error: cluster.{value} must be {needed}.\n"
    )  # fmt: skip


@pytest.mark.parametrize(("num_gpus", "planned"), [(0.25, 0.2), (1, 0.8), (None, 0.8), (0, 0.8)])
def test_jobs_that_share_a_gpu_share_its_memory(monkeypatch, num_gpus, planned):
    played = SimpleNamespace(remote=lambda **_: lambda work: work, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", played)
    for name in ("_connect", "_check"):
        monkeypatch.setattr(on_ray.OnRay, name, lambda *_given: None)
    for name in ("exit_on_signals", "end_runs"):
        monkeypatch.setattr(on_ray, name, lambda *_given: None)
    jobs = [(composed()[0], {}, "s1") for _ in range(2)]
    with on_ray.OnRay(num_gpus=num_gpus).hired(jobs, show=None):
        assert [job[0].engine.free_share for job in jobs] == [planned] * 2


@pytest.mark.parametrize(("machines", "refused"), [("ab", True), ("aa", False)])
def test_store_that_is_a_file_is_for_one_machine(monkeypatch, machines, refused):
    nodes = [
        {"Alive": True, "Resources": {"CPU": 1, "GPU": 0}, "NodeManagerHostname": name}
        for name in machines
    ]
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(nodes=lambda: nodes))
    jobs = [(composed("tracking.uri=sqlite:///mlflow.db")[0], {}, "s1")]
    said = pytest.raises(UserError, match="The 2 machines of the Ray cluster would write to")
    with said if refused else nullcontext():
        on_ray.OnRay(num_gpus=0)._check(jobs)


@pytest.fixture
def ray():
    return pytest.importorskip("ray", reason="ray is not installed: pip install 'dfolora[ray]'")


@pytest.fixture
def folders(tmp_path):
    """Where this machine's processes run the jobs, and where Ray does."""
    made = tmp_path / "here", tmp_path / "ray"
    for folder in made:
        folder.mkdir()
    return made


@pytest.mark.slow
def test_ray_gives_what_processes_give(ray, folders):
    """A job that fails included: its line, the status, the summary."""
    sweep = ["-m", "dim=42,40", "seed=1,2", "budget=25", "dev_interval=20"]
    ran = [
        command(folder, "run", *sweep, *how)
        for folder, how in zip(folders, ([], ["cluster=ray"]), strict=True)
    ]
    for done in ran:
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("error: dim=42 ") == 2
        assert done.stderr.count("Its job: dim=42 seed=") == 2
        assert done.stdout.endswith("4 runs: 2 done, 2 failed\n")
        places = [line.partition("]")[0] for line in done.stdout.splitlines()[:-1]]
        assert sorted(places) == sorted(set(places))
    assert_same_runs(*folders)


@pytest.mark.slow
def test_jobs_of_a_lost_node_go_on_at_another(ray, folders):
    from ray.cluster_utils import Cluster

    sweep = ["-m", "seed=1,2,3", "dim=40", "budget=1500", "dev_interval=100"]
    here, there = folders
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        ran = subprocess.Popen(
            [sys.executable, "-m", "pipelines.run", *sweep, "cluster=ray",
             f"cluster.address={cluster.address}"],
            cwd=there, env=environment(there), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        begun = eventually(lambda: journals(there, 2, lines=20), ran)
        cluster.remove_node(node, allow_graceful=False)
        out, error = ran.communicate(timeout=400)
    finally:
        cluster.shutdown()
    assert begun
    assert ran.returncode == 0, error
    assert out.endswith("3 runs: 3 done\n")
    assert command(here, "run", *sweep).returncode == 0
    assert_same_runs(here, there)


@pytest.mark.slow
def test_interrupted_command_leaves_no_job(ray, folders):
    _, there = folders
    ran = subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", "-m", "seed=1,2", "dim=40", "budget=100000",
         "cluster=ray"],
        cwd=there, env=environment(there), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    eventually(lambda: journals(there, 2, lines=2), ran)
    ran.send_signal(signal.SIGINT)
    out, error = ran.communicate(timeout=200)
    assert (ran.returncode, out) == (128 + signal.SIGINT, "")
    assert error.endswith("stopped: what was done is kept; call again to go on\n")
    store = Store(f"sqlite:///{there}/mlflow.db")
    found = store._client.search_runs(store._experiment_ids())
    assert [run.info.status for run in found] == ["KILLED"] * 2
    before = _sizes(there)
    time.sleep(2)
    assert _sizes(there) == before


@pytest.mark.slow
def test_cluster_that_does_not_answer_is_told(ray, ended):
    status, out, error = ended("run", "cluster=ray", "cluster.address=127.0.0.1:9")
    assert (status, out) == (2, "")
    assert error.startswith("error: cluster.address=127.0.0.1:9 is no Ray cluster that answers. ")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_job_that_no_node_has_room_for_is_told(ray, ended):
    status, out, error = ended("run", "cluster=ray", "cluster.num_cpus=9999")
    assert (status, out) == (2, "")
    assert "No node of the Ray cluster has what a job takes, {'CPU': 9999, 'GPU': 0}." in error


def _sizes(folder):
    return {path: path.stat().st_size for path in folder.glob("outputs/*/journal.jsonl")}
