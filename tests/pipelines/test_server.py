"""Sweeps on a tracking server that several folders use: MLflow on PostgreSQL, on this machine."""

import subprocess
import sys

import pytest

from dfolora.record import Store
from tests.commands import command, environment
from tests.servers import tracking_server
from tests.sweeps import eventually, journals

pytestmark = pytest.mark.slow

SWEEP = ["-m", "row=c_lora,manual_prompt", "seed=1,2", "dim=40", "budget=600", "dev_interval=100"]


@pytest.fixture
def server(tmp_path):
    (tmp_path / "files").mkdir()
    with tracking_server(tmp_path / "files") as server:
        yield server


def begun(folder, server):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", *SWEEP],
        cwd=folder, env=environment(folder) | {"MLFLOW_TRACKING_URI": server.uri}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def scores(store):
    """What was measured of each digest, which one run alone has, and that has finished."""
    found = store._client.search_runs(store._experiment_ids())
    assert [run.info.status for run in found] == ["FINISHED"] * 3
    digests = {run.data.tags["digest"]: run.data.metrics for run in found}
    assert len(digests) == 3  # the prompt knows no seed
    return {digest: (one["test/score"], one.get("train/loss")) for digest, one in digests.items()}


def alone(folder):
    """What the sweep gives where nothing is shared and nothing breaks."""
    folder.mkdir()
    done = command(folder, "run", *SWEEP)
    assert done.returncode == 0, done.stderr
    return scores(Store(f"sqlite:///{folder}/mlflow.db"))


def test_two_folders_finish_each_run_once(server, tmp_path):
    ran = [begun(tmp_path / name, server) for name in "ab"]
    told = [one.communicate(timeout=500) for one in ran]
    assert [one.returncode for one in ran] == [0, 0], told
    store = Store(server.uri)
    assert scores(store) == alone(tmp_path / "alone")
    for run_id in store.runs()["run_id"]:
        names = {item.path for item in store._client.list_artifacts(run_id)}
        assert {"adapter", "config.yaml"} <= names
    assert not [*tmp_path.glob("[ab]/outputs/*/*")]


def test_nothing_is_lost_when_the_line_is_cut_and_the_server_restarted(server, tmp_path):
    ran = [begun(tmp_path / name, server) for name in "ab"]
    eventually(lambda: journals(tmp_path / "a", 1, lines=5), ran[0])
    server.cut()
    server.stop()
    eventually(lambda: journals(tmp_path / "a", 1, lines=15), ran[0])
    server.start()
    server.mend()
    for one in ran:
        one.communicate(timeout=500)  # the status tells whether a run waits to be recorded
    for name in "ab":
        again = begun(tmp_path / name, server)
        told = again.communicate(timeout=500)
        assert again.returncode == 0, told
    assert scores(Store(server.uri)) == alone(tmp_path / "alone")
