"""Whole runs on emulated GPUs: recorded, broken off anywhere, gone on with, short of memory."""

import os
import shutil
import sqlite3
import warnings
from contextlib import closing
from itertools import cycle

import numpy as np
import pytest

from dfolora.record import Store
from pipelines.jobs.job import DEFECT, work
from tests.commands import composed
from tests.emulation import SHORTAGES, emulated_cuda
from tests.forking import forked
from tests.pipelines.test_stops import KEPT, stopped_after

SMALL = ("budget=61", "dim=40", "dev_interval=20", "data.k=4", "precision=fp32")


def ran(*overrides, device="cuda"):
    return work(*composed(*SMALL, f"device={device}", *overrides), "s")


def only_run():
    (run,) = Store(os.environ["MLFLOW_TRACKING_URI"]).runs().to_dict("records")
    return run


def losses():
    """Of the run's curve of losses."""
    store, run = Store(os.environ["MLFLOW_TRACKING_URI"]), only_run()
    points = store._client.get_metric_history(run["run_id"], "train/loss")
    return [point.value for point in sorted(points, key=lambda point: point.step)]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A store's file, which takes MLflow longer to make than a run takes."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    Store(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture(autouse=True)
def stored(in_folder, empty_store):
    """A working folder with an empty store."""
    shutil.copy(empty_store, in_folder)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, empty_store):
    """The losses of the CPU's run."""
    folder = tmp_path_factory.mktemp("cpu")
    shutil.copy(empty_store, folder)
    with pytest.MonkeyPatch.context() as there:
        there.chdir(folder)
        there.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        assert ran(device="cpu").ending == "done"
        return losses()


@pytest.mark.parametrize("device", ["auto", "cuda:1"])
def test_run_is_the_cpus_and_names_the_gpu(device, expected):
    with emulated_cuda(devices=2):
        assert ran(device=device).ending == "done"
        run = only_run()
    np.testing.assert_allclose(losses(), expected, rtol=0, atol=1e-5)
    number = "1" if device == "cuda:1" else "0"
    assert run["params.used.device"] == f"Emulated GPU {number}"
    assert run["params.used.dtype"] == "torch.float32"
    assert run["metrics.memory/torch_mb"] == 0


def test_device_that_is_not_there_is_refused():
    with emulated_cuda(devices=2):
        ended = ran(device="cuda:2")
    assert ended.line.startswith("error: device=cuda:2, but torch")
    assert "sees 2 CUDA devices" in ended.line


def test_half_precision_is_what_auto_is():
    with emulated_cuda():
        assert ran("precision=auto", "row=lora", "training.epochs=2").ending == "done"
    assert only_run()["params.used.dtype"] == "torch.bfloat16"


def broken_off(monkeypatch, device="cuda"):
    with monkeypatch.context() as patched, emulated_cuda():
        stopped_after(patched, [2], MemoryError())
        assert ran(device=device).line == f"error: MemoryError. {KEPT}"


def test_run_that_was_broken_off_goes_on(expected, monkeypatch):
    broken_off(monkeypatch)
    with emulated_cuda() as gpu:
        assert ran().ending == "done"
    np.testing.assert_allclose(losses(), expected, rtol=0, atol=1e-5)
    assert gpu.kernels.total() > 0


@pytest.mark.parametrize(
    ("first", "then"), [("cuda", "cpu"), ("cpu", "cuda")], ids=["GPU first", "CPU first"]
)
def test_run_goes_on_where_it_was_begun_alone(first, then, monkeypatch):
    """Its losses would be those of two devices, though its digest is one."""
    broken_off(monkeypatch, first)
    names = {"cpu": "cpu", "cuda": "Emulated GPU 0"}
    with emulated_cuda():
        ended = ran(device=then)
        assert f"device was {names[first]} and is {names[then]}. Go on with" in ended.line
        assert ran(device=first).ending == "done"
        assert ran(device=then).ending == "in the store already"


def killed(place, store):
    """Do a run, and die at a kernel."""
    with emulated_cuda() as gpu:
        gpu.launch = lambda _name, launch=gpu.launch: (
            os._exit(9) if gpu.kernels.total() == place else launch(_name)
        )
        ran(f"tracking.uri={store}")


@pytest.mark.slow
@pytest.mark.parametrize("place", [100, 400, 900])
def test_run_that_was_killed_goes_on(place, expected):
    child = forked(killed, place, os.environ["MLFLOW_TRACKING_URI"])
    child.join()
    assert child.exitcode == 9
    with emulated_cuda():
        assert ran().ending == "done"
    np.testing.assert_allclose(losses(), expected, rtol=0, atol=1e-5)


def short_of_memory(kind, place, *overrides):
    """A run in which one kernel finds no memory, once more if it ended there; its warnings."""
    with warnings.catch_warnings(record=True) as told, emulated_cuda() as gpu:
        warnings.simplefilter("always")
        gpu.run_out(SHORTAGES[kind], after=place)
        ended = ran(*overrides)
        if ended.ending == "failed":
            assert ended.status == DEFECT
            assert ended.line.endswith(KEPT)
            ended = ran(*overrides)
    assert ended.ending == "done"
    return [str(warning.message) for warning in told]


@pytest.mark.parametrize("kind", ["torch", "cublas"])
def test_search_that_runs_out_of_memory_goes_on_with_smaller_pieces(kind, expected, capsys):
    short_of_memory(kind, 1000)
    assert "Out of memory with" in capsys.readouterr().err
    np.testing.assert_allclose(losses(), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["c_lora", "gap3", "bbtv2"])
@pytest.mark.parametrize(
    ("place", "kind"),
    list(zip([10, 60, 150, 300, 500, 800, 1200, 1600], cycle(SHORTAGES), strict=False)),
)
def test_memory_may_run_out_anywhere(kind, place, row):
    short_of_memory(kind, place, f"row={row}")
