"""Runs that are killed at any moment, over and over, end as if nothing had happened.

``DFOLORA_KILLS=200 pytest tests/test_kill.py`` kills more often than CI has time for.
"""

import json
import os
import signal
import time
import traceback
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import pipelines.execute
from dfolora.tracking import Store, runlog
from tests.test_end_to_end import composed

KILLS = int(os.environ.get("DFOLORA_KILLS", "20"))
SMALL = ["budget=120", "dim=40", "dev_interval=20"]
ROWS = ("c_lora", "f_lora", "bitfit", "gap3", "bbtv2", "manual_prompt")
CURVES = ("train/loss", "train/best", "train/mean", "train/spread", "train/step_size",
          "dev/score", "dev/loss")  # fmt: skip
MEASURED = ("memory/", "time/", "dev/selected_s")
"""What is different in each run, killed or not."""


def start(folder, row, seed, flush=30.0):
    """A process at work on one run; with a store and a working folder of its own."""
    config, choices = composed(f"row={row}", f"seed={seed}", *SMALL)
    config.tracking.uri = f"sqlite:///{folder}/mlflow.db"
    pid = os.fork()
    if pid:
        return pid
    try:
        os.chdir(folder)
        runlog.FLUSH_SECONDS = flush  # as often as can be, or only in the end
        pipelines.execute.commit = lambda: "of the test"  # the code's own may change meanwhile
        pipelines.execute.execute(config, choices, sweep_id="s")
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def ended(pid, seconds):
    """Whether the process came to its end in time; else it is killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


def place(folder):
    """How far a run was, by what it left."""
    left = {path.name for path in folder.glob("outputs/*/*")}
    if "summary.json" in left:
        return "while it was recorded"
    if "adapter" in left or "fitness.png" in left:
        return "while it was tested and saved"
    if "journal.jsonl" in left:
        return "in the fit or the test"
    return "before the first step"


def whole(folder, row, seed):
    """Let a run come to its end; the seconds it took."""
    began = time.monotonic()
    assert ended(start(folder, row, seed), 120)
    return time.monotonic() - began


def record(store, run):
    """All that a run left, but for what is measured by a clock."""
    measured = tuple(f"metrics.{name}" for name in MEASURED)
    kept = {
        name: value
        for name, value in run.items()
        if name.startswith("metrics.") and not name.startswith(measured)
    }
    history = store._client.get_metric_history
    curves = {
        name: [(point.step, point.value) for point in history(run["run_id"], name)]
        for name in CURVES
    }
    folder = Path(run["artifact_uri"].removeprefix("file://"))
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".png"
    }
    del files["run.json"], files["summary.json"]
    lines = files.pop("journal.jsonl", b"").splitlines()
    steps = [json.loads(line) for line in lines]
    for step in steps:
        for key in ("seconds", "memory_mb", "check"):
            del step[key]
    return kept, curves, files, steps


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_runs_that_are_killed_end_as_if_nothing_had_happened(tmp_path):
    rng = np.random.default_rng(0)
    untouched, killed = tmp_path / "untouched", tmp_path / "killed"
    untouched.mkdir()
    killed.mkdir()
    kills, jobs, places = 0, [], Counter()
    for number in count():
        job = ROWS[number % len(ROWS)], number
        seconds = whole(untouched, *job)
        jobs.append(job)
        while kills < KILLS:
            if ended(start(killed, *job, flush=rng.choice([0.0, 30.0])), rng.uniform(0, seconds)):
                break
            kills += 1
            places[place(killed)] += 1
        else:
            whole(killed, *job)
            break
    left, right = (Store(f"sqlite:///{folder}/mlflow.db") for folder in (untouched, killed))
    assert kills == KILLS
    print(f"{kills} kills over {len(jobs)} runs, where they struck: {dict(places)}")  # noqa: T201
    for store, folder in ((left, untouched), (right, killed)):
        runs = store._client.search_runs(store._experiment_ids())
        assert {run.info.status for run in runs} == {"FINISHED"}  # those taken away are not found
        assert [path.name for path in (folder / "outputs").iterdir()] == []
        assert not list(folder.rglob("*.part"))
        assert not list((folder / "mlruns" / "locks").iterdir())
    one, other = (
        {run["tags.digest"]: run for run in store.runs().to_dict("records")}
        for store in (left, right)
    )
    assert len(left.runs()) == len(right.runs()) == len(one)
    assert one.keys() == other.keys()
    for digest in one:
        for a, b in zip(record(left, one[digest]), record(right, other[digest]), strict=True):
            np.testing.assert_equal(a, b)  # nan is nan here
