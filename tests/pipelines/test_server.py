"""Sweeps on a tracking server that several folders use: MLflow on PostgreSQL, on this machine."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from math import nan
from pathlib import Path

import pandas as pd
import pytest
from requests import Session

from dfolora.record import Store, direct
from dfolora.record import store as store_module
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


def begun(folder, server, *sweep):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", *(sweep or SWEEP)],
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


@pytest.fixture
def requests_made(monkeypatch):
    """What each request of this process to a server was about."""
    made = []
    request = Session.request

    def noted(self, method, url, **options):
        made.append(url.rpartition("/mlflow")[2])
        return request(self, method, url, **options)

    monkeypatch.setattr(Session, "request", noted)
    return made


def test_runs_are_read_in_few_requests_as_mlflows_client_tells_them(
    server, tmp_path, requests_made, monkeypatch
):
    """Of every kind, over several pages, the last of them full."""
    store = Store(server.uri)
    item = {"item.table1.mini": "1"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "fitness.png").write_bytes(b"png")
    for number in range(6):
        tags = {"digest": f"d{number}", "note": "Ünïcode '\"%"} | (item if number else {})
        with suppress(RuntimeError), store.start("one", "a", tags=tags, params={"p": ""}) as log:
            log.metrics({"test/score": 0.1 * number, "calls": 0.0, "train/loss": 1e-300})
            log.artifacts(tmp_path / "run")
            if number == 2:
                raise RuntimeError
    store._client.log_metric(log.run_id, "dev/score", nan)
    store._client.delete_run(store.runs()["run_id"][1])
    monkeypatch.setattr(direct, "RUNS_A_PAGE", 2)
    monkeypatch.setattr(direct, "AT_ONCE", 3)
    requests_made.clear()
    told = store.tagged("item.table1.mini")
    assert requests_made == ["/experiments/search", *["/runs/search"] * 4]  # one, then three
    assert told["tags.digest"].tolist() == ["d2", "d3", "d4", "d5"]
    found = store._client.search_runs(
        store._experiment_ids(), "tags.`item.table1.mini` LIKE '%'",
        order_by=["attributes.start_time ASC"],
    )  # fmt: skip
    wanted = pd.DataFrame([store_module._row(run) for run in found])
    pd.testing.assert_frame_equal(told[sorted(told)], wanted[sorted(wanted)])
    assert store.runs()["tags.digest"].tolist() == ["d0", "d3", "d4", "d5"]
    requests_made.clear()
    assert store.artifact(told["artifact_uri"][0], "fitness.png") == b"png"
    assert store.artifact(told["artifact_uri"][0], "other.png") is None
    assert sum(one.startswith("-artifacts") for one in requests_made) == 2


@contextmanager
def small_disk(folder):
    """A file system of 16 kB in a folder; what it gives makes room there."""

    def mount(*what):
        return subprocess.run(["mount", *what, folder], capture_output=True, check=False).returncode

    folder.mkdir()
    if os.getuid() != 0 or mount("-t", "tmpfs", "-o", "size=16k", "tmpfs"):
        pytest.skip("a small file system cannot be mounted here: it takes root")
    try:
        yield lambda: mount("-o", "remount,size=64m") == 0
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_run_waits_in_its_folder_until_the_servers_disk_has_room(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # of what no second try changes
    job = ["row=c_lora", "dim=40", "budget=60", "dev_interval=30"]
    with small_disk(tmp_path / "files") as make_room, tracking_server(tmp_path / "files") as server:
        first = begun(tmp_path / "a", server, *job)
        _, error = first.communicate(timeout=500)
        (line,) = [line for line in error.splitlines() if "error" in line]
        assert first.returncode == 1
        assert line.startswith("error: The tracking store failed: ")
        assert line.endswith(
            "; look whether the disk of the run's files is full. What was done is kept; call again "
            "to go on."
        )
        (over,) = tmp_path.glob("a/outputs/*/summary.json")
        fitted = sorted(over.parent.glob("adapter/*"))
        store = Store(server.uri)
        (run,) = store._client.search_runs(store._experiment_ids())
        assert run.info.status == "FAILED"

        # What waits is recorded, and not fitted again: nothing else knows this metric.
        waits = json.loads(over.read_text())
        waits["metrics"]["waited"] = 1.0
        over.write_text(json.dumps(waits))
        assert make_room()
        again = begun(tmp_path / "a", server, *job)
        told = again.communicate(timeout=500)
        assert again.returncode == 0, told
        (run,) = store._client.search_runs(store._experiment_ids())
        assert (run.info.status, run.data.metrics["waited"]) == ("FINISHED", 1.0)
        kept = store._client.list_artifacts(run.info.run_id, "adapter")
        assert [Path(item.path).name for item in kept] == [path.name for path in fitted]
    assert not [*tmp_path.glob("a/outputs/*/*")]
