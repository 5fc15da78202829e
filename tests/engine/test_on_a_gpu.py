"""The engine on an emulated GPU: every family of models, in coarse groups, in any pieces."""

import numpy as np
import pytest
import torch

from dfolora.engine.forward import _needed
from dfolora.errors import UserError
from tests.conftest import SIZES
from tests.emulation import emulated_cuda
from tests.families import CONFIGS
from tests.pipelines.test_gpu import losses_on
from tests.queues import Queues

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


@pytest.mark.filterwarnings("ignore:The device will wait")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("model", ["roberta", "gpt2", "llama", "gpt_neox"])
def test_streamed_layers_give_the_bits_of_resident_ones(
    model, precision, batch, label_ids, monkeypatch
):
    """They come from pinned memory, a layer at a time, and nothing else does that did not."""
    queues = Queues(monkeypatch)
    for tokens in (None, 100):
        with emulated_cuda(devices=2) as resident:
            expected = losses_on("cuda:1", precision, model, batch, label_ids, tokens=tokens)
        queues.asked.clear()
        with emulated_cuda(devices=2) as streamed:
            found = losses_on(
                "cuda:1", precision, model, batch, label_ids, stream=True, tokens=tokens
            )
        assert np.array_equal(found, expected)
        copies = sum(asked.startswith("copied") for asked in queues.asked)
        # Statistics take each layer; a turn of layer 0 or 1 finds one of the three still there, and
        # one of layer 2 the two that it needs.
        assert copies == 3 + 2 + 2 + 0
        assert streamed.traffic["to device"] == resident.traffic["to device"] + copies
        assert streamed.traffic["wait"] == resident.traffic["wait"]
        assert streamed.traffic["pinned"] == resident.traffic["pinned"] + 3


@pytest.mark.filterwarnings("ignore:The device will wait")
def test_streamed_layers_share_the_memory_that_is_free(batch, label_ids, monkeypatch):
    """Of 4 MB a share of 0.8; the rest of the model and two layers are there already."""
    Queues(monkeypatch)
    cpu = losses_on("cpu", torch.float32, "gpt2", batch, label_ids)
    with emulated_cuda(free=4 * 10**6):
        found = losses_on("cuda:0", torch.float32, "gpt2", batch, label_ids, stream=True)
    np.testing.assert_allclose(found, cpu, rtol=0, atol=1e-5)
    message = r"beside the weights' 1 MB .*; 0\.1 MB are allowed\. Raise engine\.memory, or lower"
    with emulated_cuda(free=10**5), pytest.raises(UserError, match=message):
        losses_on("cuda:0", torch.float32, "gpt2", batch, label_ids, stream=True)
    message = r"Raise engine\.memory, set engine\.stream=true if the weights leave too little, or"
    with emulated_cuda(free=10**5), pytest.raises(UserError, match=message):
        losses_on("cuda:0", torch.float32, "gpt2", batch, label_ids)


def test_some_coarse_groups_are_padded(batch):
    for causal in (False, True):
        packs = _needed(batch, causal=causal).packs(1000, torch.device("cpu"), coarse=True)
        assert any(group.places is not None for pack in packs for group in pack.groups)
