"""Attention in one kernel, with a slow one in place of the GPU's."""

import pytest
import torch

from dfolora.engine.forward import COARSE, Engine
from dfolora.model import attention
from dfolora.model.backbone import Backbone
from tests.conftest import SIZES, random_batch, tiny_model
from tests.families import CONFIGS
from tests.reference import varlen_attention
from tests.searching import logits_of, some_solution, subspace_of

LABELS = torch.tensor([7, 50, 99])
LENGTHS, ANSWERS = [3, 64, 3, 40, 19, 17, 4, 64, 3], [0, 63, 2, 20, 18, 9, 0, 31, 1]


@pytest.fixture
def on_a_gpu(monkeypatch):
    """What ``_has_kernel`` asks of the device, answered as a GPU would; the rest stays."""
    asked = attention._has_kernel
    taken = []

    def answer(q, attending, rule):
        with monkeypatch.context() as on:
            on.setattr(torch.Tensor, "is_cuda", True)
            on.setattr(torch.Tensor, "dtype", torch.bfloat16)
            on.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
            on.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
            taken.append(asked(q, attending, rule))
        return taken[-1]

    monkeypatch.setattr(attention, "_has_kernel", answer)
    with varlen_attention.implemented():
        yield taken


def same_with_and_without(name, batch, monkeypatch):
    """A round of a population's logits, with the kernel and without it."""
    backbone = Backbone(tiny_model(name))
    subspace = subspace_of(backbone, batch, targets=("q", "k", "v", "o"))
    solution, candidates = some_solution()
    engine = Engine(backbone, batch, LABELS)
    calls = [(engine, subspace, solution, block, candidates) for block in range(3)]
    got = torch.stack([logits_of(*call) for call in calls])
    monkeypatch.setattr(attention, "_has_kernel", lambda *_given: False)
    expected = torch.stack([logits_of(*call) for call in calls])
    torch.testing.assert_close(got, expected, rtol=0, atol=3e-4)  # logits up to 20


@pytest.mark.parametrize("name", [*SIZES, *CONFIGS])
def test_one_kernel_gives_what_groups_give(name, on_a_gpu, monkeypatch):
    """In float32, where neither rounds: windows, scales, fewer heads, answers alone."""
    same_with_and_without(name, random_batch(LENGTHS, ANSWERS), monkeypatch)
    # Caps of scores are not in the kernel, nor are heads whose width is no multiple of 8.
    assert any(on_a_gpu) == (name not in ("gemma2", "llama with wide heads and biases"))


def test_causal_groups_with_padding_need_no_mask(monkeypatch):
    """One would rule out the fast kernels; what pads them comes after all that a token sees."""
    made, mask_of = [], attention._mask

    def noted(group, attending, rule):
        mask = mask_of(group, attending, rule)
        if group.keys is not None and not attending.answers_only:
            made.append(mask)
        return mask

    monkeypatch.setitem(COARSE, "cpu", True)
    monkeypatch.setattr(attention, "_mask", noted)
    backbone = Backbone(tiny_model("gpt2"))
    Engine(backbone, random_batch([9, 10, 30, 31], [8, 9, 29, 30]), LABELS)({})
    assert len(made) >= 2
    assert all(mask is None for mask in made)


def test_answers_in_the_padding_are_not_for_the_kernel(on_a_gpu, monkeypatch):
    """As the released readout has them."""
    same_with_and_without("gpt2", random_batch([3, 9, 5], [8, 8, 8]), monkeypatch)
    assert not on_a_gpu[-1]
