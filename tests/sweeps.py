"""Sweeps as other processes run them: how far they are, and what they leave in a store."""

import time

from dfolora.record import Store

METRICS = ("train/loss", "test/score", "dev/selected_score")


def runs_of(folder):
    """All runs of a folder's store, by digest, each of which has finished."""
    store = Store(f"sqlite:///{folder}/mlflow.db")
    found = store._client.search_runs(store._experiment_ids())
    assert {run.info.status for run in found} == {"FINISHED"}
    digests = {run.data.tags["digest"]: run.data.metrics for run in found}
    assert len(digests) == len(found)
    return digests


def assert_same_runs(folder, other):
    one, two = runs_of(folder), runs_of(other)
    assert one.keys() == two.keys()
    for digest in one:
        for metric in METRICS:
            assert one[digest].get(metric) == two[digest].get(metric)


def journals(folder, count, *, lines):
    """The journals of so many runs, once each has so many lines."""
    found = [*folder.glob("outputs/*/journal.jsonl")]
    long = [path for path in found if path.read_bytes().count(b"\n") >= lines]
    return long if len(long) >= count else None


def eventually(found, process):
    """What ``found`` gives once it gives something, while a process runs."""
    for _ in range(3000):
        if value := found():
            return value
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    raise AssertionError("it never came")
