"""The same numbers on a CUDA device, in bounded memory; skipped where there is none."""

import numpy as np
import pytest
import torch

from dfolora.engine.forward import Engine
from dfolora.model import Backbone, Limits, attention
from dfolora.record import Store
from dfolora.record.memory import PeakMemory
from pipelines.jobs.job import work
from tests.commands import composed
from tests.conftest import random_batch, tiny_model
from tests.pipelines.test_conf import options, with_what_is_missing
from tests.pipelines.test_stops import stopped_after
from tests.searching import evaluator_of, limited, logits_of, some_solution, subspace_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def losses_on(device, dtype, family, batch, label_ids, **limits):
    """Of a round of the layers, as carried along."""
    backbone = Backbone(tiny_model(family).to(device, dtype), Limits(**limits))
    targets = ("q", "k", "v", "o")
    evaluate, _ = evaluator_of(backbone, batch, label_ids, targets=targets)
    solution, candidates = some_solution(6)
    return np.array([evaluate(solution, block, candidates).losses for block in range(3)])


def test_device_gives_the_cpus_losses(family, batch, label_ids):
    cpu = losses_on("cpu", torch.float32, family, batch, label_ids)
    for limits in ({}, {"tokens": 100}, {"memory": 2.0}):
        cuda = losses_on("cuda", torch.float32, family, batch, label_ids, **limits)
        np.testing.assert_allclose(cuda, cpu, rtol=0, atol=1e-4)  # TF32 off; other kernels
    half = losses_on("cuda", torch.bfloat16, family, batch, label_ids)
    np.testing.assert_allclose(half, cpu, rtol=0, atol=0.2)  # 8 bits of mantissa


@pytest.mark.parametrize("name", ["roberta", "gpt2", "llama", "mistral", "modernbert"])
def test_attention_in_one_kernel_is_that_of_groups(name, label_ids, monkeypatch):
    """With fewer heads of keys, windows, answers alone and several candidates."""
    lengths, answers = [3, 60, 3, 40, 19, 17], [2, 59, 2, 39, 18, 16]
    batch = random_batch(lengths, answers)
    backbone = Backbone(tiny_model(name).to("cuda", torch.bfloat16))
    subspace = subspace_of(backbone, batch)
    solution, candidates = some_solution(5)
    found = []
    for kernel in (attention._has_kernel, lambda *_given: False):
        monkeypatch.setattr(attention, "_has_kernel", kernel)
        engine = Engine(backbone, batch, label_ids)
        found.append([logits_of(engine, subspace, solution, n, candidates) for n in range(3)])
    for one, groups in zip(*found, strict=True):
        near = (one - groups).abs() <= 0.1 + 0.02 * groups.abs()  # 8 bits of mantissa
        assert near.float().mean() > 0.9


WIDER = {
    "roberta": {"hidden_size": 256, "intermediate_size": 1024},
    "bert": {"hidden_size": 256, "intermediate_size": 1024},
    "gpt2": {"n_embd": 256},
}


@pytest.mark.parametrize("megabytes", [8, 20, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_memory_stays_below_what_is_allowed(family, label_ids, dtype, megabytes):
    backbone = Backbone(tiny_model(family, **WIDER[family]).to("cuda", dtype))
    batch = random_batch([60, 5, 17, 33, 60, 41, 58, 22], [59, 4, 16, 32, 59, 40, 57, 21])
    subspace = subspace_of(backbone, batch)
    solution, candidates = some_solution(20)
    calls = [
        (subspace.incumbents(solution, without=[block]), subspace.interventions(block, candidates))
        for block in range(3)
    ]
    Engine(backbone, batch, label_ids)(*calls[0])  # what libraries keep for themselves
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    engine = Engine(limited(backbone, memory=megabytes), batch, label_ids)
    for call in calls:
        engine(*call)
    assert torch.cuda.max_memory_allocated() - before <= megabytes * 1e6


def test_running_out_of_memory_goes_on_with_smaller_pieces(label_ids):
    """Of the device's own allocator, which is told to stop soon."""
    backbone = Backbone(tiny_model("roberta", **WIDER["roberta"]).cuda())
    batch = random_batch([60] * 64, [5] * 64)
    subspace = subspace_of(backbone, batch)
    call = subspace, some_solution()[0], 0, some_solution(20)[1]
    expected = logits_of(Engine(limited(backbone, tokens=1000), batch, label_ids), *call)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    engine = Engine(limited(backbone, tokens=100_000), batch, label_ids)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 150e6) / total)
    try:
        with pytest.warns(UserWarning, match="Out of memory with .* tokens at once"):
            got = logits_of(engine, *call)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_peak_memory_is_told_by_torch_and_the_driver():
    watch = PeakMemory(torch.device("cuda"))
    held = torch.empty(64_000_000, dtype=torch.uint8, device="cuda")
    watch.sample()
    del held
    peaks = watch.megabytes()
    assert 64 <= peaks["torch"] < 1000
    assert max(peaks.get("nvml", 0), peaks.get("nvml_device", 0)) > peaks["torch"]


@pytest.mark.parametrize("row", options("row"))
def test_every_row_runs(row, in_folder):
    config, choices = composed(f"row={row}", "device=cuda", "budget=61", "profile=mini")
    ended = work(with_what_is_missing(config), choices, "s")
    assert ended.ending == "done", ended.line
    assert Store(f"sqlite:///{in_folder}/mlflow.db").runs()["params.used.device"][0] != "cpu"


@pytest.mark.parametrize("place", [1, 4])
def test_run_that_was_broken_off_ends_with_the_same_bits(place, in_folder, monkeypatch):
    job = composed("device=cuda", "budget=121")
    with monkeypatch.context() as patched:
        stopped_after(patched, [place], MemoryError())
        assert work(*job, "s").ending == "failed"
    assert work(*job, "s").ending == "done"
    other = f"sqlite:///{in_folder}/other.db"
    assert work(*composed("device=cuda", "budget=121", f"tracking.uri={other}"), "s").status == 0
    points = [
        store.history(store.runs().run_id, "train/loss")[["step", "value"]].sort_values("step")
        for store in (Store(f"sqlite:///{in_folder}/mlflow.db"), Store(other))
    ]
    assert len(points[0]) > 5
    assert points[0].to_dict("list") == points[1].to_dict("list")
