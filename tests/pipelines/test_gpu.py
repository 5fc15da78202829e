"""The same numbers on a CUDA device, in bounded memory; skipped where there is none."""

import numpy as np
import pytest
import torch

from dfolora.engine.forward import Engine
from dfolora.model import Backbone, Limits
from dfolora.record.memory import PeakMemory
from tests.conftest import random_batch, tiny_model
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
        (subspace.incumbents(solution, without=block), subspace.intervention(block, candidates))
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
