"""Runs that are killed at any moment, over and over, end as if nothing had happened.

``DFOLORA_KILLS=200 pytest tests/pipelines/test_kill.py`` kills more often than CI has time for.
"""

import json
import os
import time
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import pipelines.one_run.execute
from dfolora.record import Store, runlog
from tests.commands import composed
from tests.forking import forked
from tests.pipelines.test_resume import ZEROTH_ORDER

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("DFOLORA_KILLS", "20"))
KILLS_A_RUN = 5
SMALL = ["budget=120", "dim=40", "dev_interval=20"]
ROWS = ("c_lora", "f_lora", "bitfit", "gap3", "bbtv2", "manual_prompt")
OF_PARTS = ("bbt_rgb", "hybrid", "prompt_boosting")
"""Systems of several parts. The last two begin their fit anew."""
CURVES = ("train/loss", "train/best", "train/mean", "train/spread", "train/step_size",
          "dev/score", "dev/loss")  # fmt: skip
MEASURED = ("memory/", "time/", "dev/best_s")
"""What is different in each run, killed or not."""


def start(folder, row, seed, flush=30.0):
    """A process at work on one run; with a store and a working folder of its own."""
    return forked(run, folder, row, seed, flush)


def run(folder, row, seed, flush):
    config, choices = composed(f"row={row}", f"seed={seed}", *SMALL)
    config.tracking.uri = f"sqlite:///{folder}/mlflow.db"
    os.chdir(folder)
    runlog.FLUSH_SECONDS = flush  # as often as can be, or only in the end
    pipelines.one_run.execute.commit = lambda: "of the test"  # the code's own may change meanwhile
    pipelines.one_run.execute.execute(config, choices, sweep_id="s")


STAGES = {
    "before the first step": None,
    "in the fit": "journal.jsonl",
    "while it was tested and saved": "adapter",
    "while it was recorded": "summary.json",
}
"""Where a kill may strike, by the file that shows that it has come so far."""


def killed_at(process, folder, stage, delay):
    """Kill a process so many seconds after it has come to a stage; whether it had not ended."""
    shown = STAGES[stage]
    while shown is not None and not list(folder.glob(f"outputs/*/{shown}")):
        if not process.is_alive():
            break
        time.sleep(0.001)
    process.join(delay)
    if process.exitcode is not None:
        assert process.exitcode == 0
        return False
    process.kill()
    process.join()
    return True


def whole(folder, row, seed):
    """Let a run come to its end."""
    process = start(folder, row, seed)
    process.join()
    assert process.exitcode == 0


def record(store, one):
    """All that a run left, but for what is measured by a clock."""
    measured = tuple(f"metrics.{name}" for name in MEASURED)
    kept = {
        name: value
        for name, value in one.items()
        if name.startswith("metrics.") and not name.startswith(measured)
    }
    history = store._client.get_metric_history
    curves = {
        name: [(point.step, point.value) for point in history(one["run_id"], name)]
        for name in CURVES
    }
    folder = Path(one["artifact_uri"].removeprefix("file://"))
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
            step.pop(key, None)
    return kept, curves, files, steps


def test_runs_that_are_killed_end_as_if_nothing_had_happened(tmp_path):
    rng = np.random.default_rng(0)
    untouched, killed = tmp_path / "untouched", tmp_path / "killed"
    untouched.mkdir()
    killed.mkdir()
    jobs, struck = [], Counter()
    for number in count():
        job = ROWS[number % len(ROWS)], number
        whole(untouched, *job)
        jobs.append(job)
        for _ in range(min(KILLS_A_RUN, KILLS - struck.total())):
            stage = str(rng.choice(list(STAGES)))
            flush, delay = rng.choice([0.0, 30.0]), rng.exponential(0.1)
            if not killed_at(start(killed, *job, flush=flush), killed, stage, delay):
                break
            struck[stage] += 1
        whole(killed, *job)
        if struck.total() == KILLS:
            break
    print(f"{KILLS} kills over {len(jobs)} runs: {dict(struck)}")  # noqa: T201
    assert_same_records(untouched, killed)


@pytest.mark.parametrize("row", ZEROTH_ORDER)
def test_zeroth_order_search_that_is_killed_ends_as_if_nothing_had_happened(row, tmp_path):
    untouched, killed = tmp_path / "untouched", tmp_path / "killed"
    untouched.mkdir()
    killed.mkdir()
    whole(untouched, row, 0)
    assert killed_at(start(killed, row, 0), killed, "in the fit", delay=0.05)
    whole(killed, row, 0)
    assert_same_records(untouched, killed)


@pytest.mark.parametrize("row", OF_PARTS)
def test_system_of_parts_that_is_killed_over_and_over_ends_as_if_nothing_had_happened(
    row, tmp_path
):
    """Killed once in each stage: what one attempt leaves is what the next one finds."""
    untouched, killed = tmp_path / "untouched", tmp_path / "killed"
    untouched.mkdir()
    killed.mkdir()
    whole(untouched, row, 0)
    for stage, shown in STAGES.items():
        if shown is not None:
            assert killed_at(start(killed, row, 0), killed, stage, delay=0.02)
    whole(killed, row, 0)
    assert_same_records(untouched, killed)


def assert_same_records(untouched, killed):
    """Every run of one folder's store is in the other's, to the bit, and nothing lies about."""
    left, right = (Store(f"sqlite:///{folder}/mlflow.db") for folder in (untouched, killed))
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
