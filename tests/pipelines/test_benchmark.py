"""The benchmark: what it times, on a CPU and on emulated GPUs."""

from types import SimpleNamespace

import numpy as np
import pytest
from hydra import initialize_config_dir

from dfolora.errors import UserError
from dfolora.model import Backbone
from pipelines.benchmark import __main__ as benchmark
from pipelines.benchmark import overhead, speed
from tests.commands import PROJECT, composed
from tests.conftest import random_batch, tiny_model
from tests.emulation import emulated_cuda
from tests.engine.test_limits import up
from tests.searching import subspace_of

SMALL = (
    "model=mini_roberta", "tasks=[sst2]", "sequences=4", "layers=2", "population=2", "dim=8",
    "few.population=2", "few.layers=2", "agreement.tasks=[sst2]", "agreement.budget=61",
    "scaling.base={population:2,layers:2,examples:2,length:8}", "scaling.population=[2]",
    "scaling.layers=[2]", "scaling.examples=[2]", "scaling.length=[8]", "scaling.width=64",
)  # fmt: skip


def test_generation_is_timed_after_a_first_one_until_that_is_enough(label_ids, monkeypatch):
    """Each begins with what enters the layer before, as in a round; the median is told."""
    told = iter([9.0, 0.1, 0.1, 0.25, 0.1, 7.0, 3.0])  # the first of each layer does not count
    entered, timed = [], []

    def seconds(work, _device):
        entered.clear()
        work()
        timed.append(list(entered))
        return next(told)

    monkeypatch.setattr(speed, "seconds", seconds)
    backbone, batch = Backbone(tiny_model("roberta")), random_batch([9, 5], [3, 2])
    for layer in range(3):
        up(backbone, layer).register_forward_hook(lambda *_, layer=layer: entered.append(layer))
    taken = dict(
        speed.engine_seconds(
            backbone, subspace_of(backbone, batch), batch, label_ids,
            population=2, layers=[0, 2], rng=np.random.default_rng(0),
        )
    )  # fmt: skip
    assert taken == {0: 0.1 / 2, 2: 3.0 / 2}
    assert next(told, None) is None
    assert timed == [[0, 1, 2]] * 5 + [[1, 2]] * 2


def test_projection_is_not_taken_for_the_engines_work(monkeypatch):
    """What the device still had to do is waited for before the clock starts."""
    done = []
    monkeypatch.setattr(overhead, "wait", lambda device: done.append(device))
    clock = SimpleNamespace(perf_counter=lambda: done.append("clock") or 0)
    monkeypatch.setattr(overhead, "time", clock)
    timed = overhead._Timed(lambda *_: done.append("engine"), "the device")
    timed({}, None)
    assert done == ["the device", "clock", "engine", "the device", "clock"]


def test_precision_that_is_not_installed_is_left_out_and_told(monkeypatch):
    assert benchmark._installed(["bf16", "int8"]) == (["bf16", "int8"], "")

    def absent():
        raise UserError("precision=int8 needs torchao")

    monkeypatch.setattr("dfolora.model.check_torchao", absent)
    left, told = benchmark._installed(["bf16", "int8"])
    assert left == ["bf16"]
    assert "int8" in told


def test_gpu_that_is_named_is_the_one_that_was_asked_for():
    with emulated_cuda(devices=2):
        head = benchmark._head(composed("device=cuda:1", *SMALL, config="benchmark")[0])
    assert "Emulated GPU 1" in head


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_benchmark_reports_every_part(device, monkeypatch):
    monkeypatch.setattr(speed, "ENOUGH_SECONDS", 0.0)
    config, _ = composed(f"device={device}", *SMALL, config="benchmark")
    conf = initialize_config_dir(str(PROJECT / "conf"), version_base="1.3")
    with conf, emulated_cuda(devices=2) as gpu:
        report = "\n".join(benchmark._parts(config))
    assert [line for line in report.splitlines() if line.startswith("## ")] == [
        "## A candidate on sst2", "## All tasks", "## Agreement with fp32", "## How cost grows",
    ]  # fmt: skip
    assert (gpu.kernels.total() > 0) == (device != "cpu")
