"""The engine on an emulated GPU: every family of models, in coarse groups, in any pieces."""

import numpy as np
import pytest
import torch

from dfolora.engine.forward import _needed
from tests.conftest import SIZES
from tests.emulation import emulated_cuda
from tests.families import CONFIGS
from tests.pipelines.test_gpu import losses_on

LIMITS = ({}, {"tokens": 100}, {"memory": 2.0})


@pytest.mark.parametrize(
    "model", [*SIZES, *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS)]
)
def test_losses_are_the_cpus(model, batch, label_ids):
    cpu = losses_on("cpu", torch.float32, model, batch, label_ids)
    with emulated_cuda(devices=2) as gpu:
        for limits in LIMITS:
            found = losses_on("cuda:1", torch.float32, model, batch, label_ids, **limits)
            np.testing.assert_allclose(found, cpu, rtol=0, atol=1e-5)
        half = losses_on("cuda:1", torch.bfloat16, model, batch, label_ids)
    np.testing.assert_allclose(half, cpu, rtol=0, atol=0.2)  # 8 bits of mantissa
    assert gpu.traffic["index to device"] == 0  # it would wait for each


def test_some_coarse_groups_are_padded(batch):
    for causal in (False, True):
        packs = _needed(batch, causal=causal).packs(1000, torch.device("cpu"), coarse=True)
        assert any(group.places is not None for pack in packs for group in pack.groups)
