"""The same numbers on a CUDA device; skipped where there is none."""

import numpy as np
import pytest
import torch

from dfolora.backbone import Backbone
from dfolora.evaluate import PopulationEvaluator, PopulationForward
from dfolora.memory import PeakMemory
from dfolora.subspace import SubspaceSpec
from tests.conftest import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def losses_on(device, dtype, family, batch, label_ids):
    backbone = Backbone(tiny_model(family).to(device, dtype))
    subspace = SubspaceSpec(dim=96, alpha=2.0, targets=("q", "k", "v", "o")).build(
        backbone, batch.input_ids, batch.attention_mask, 0
    )
    forward = PopulationForward(backbone, subspace, batch, label_ids, tokens=4096)
    evaluate = PopulationEvaluator(forward, batch.labels, objective="ce", metric="accuracy")
    rng = np.random.default_rng(2)
    return evaluate(rng.normal(size=(3, 96)), 1, rng.normal(size=(6, 96))).losses


def test_device_gives_the_cpus_losses(family, batch, label_ids):
    cpu = losses_on("cpu", torch.float32, family, batch, label_ids)
    cuda = losses_on("cuda", torch.float32, family, batch, label_ids)
    np.testing.assert_allclose(cuda, cpu, rtol=0, atol=1e-4)  # TF32 off; other kernels
    half = losses_on("cuda", torch.bfloat16, family, batch, label_ids)
    np.testing.assert_allclose(half, cpu, rtol=0, atol=0.1)  # 8 bits of mantissa


def test_peak_memory_is_told_by_torch_and_the_driver():
    watch = PeakMemory(torch.device("cuda"))
    held = torch.empty(64_000_000, dtype=torch.uint8, device="cuda")
    watch.sample()
    del held
    peaks = watch.megabytes()
    assert 64 <= peaks["torch"] < 1000
    assert max(peaks.get("nvml", 0), peaks.get("nvml_device", 0)) > peaks["torch"]
