"""Where a subspace's random maps are held, on emulated GPUs; and that threads draw the same."""

from threading import Event

import pytest
import torch

from dfolora.model import Backbone, Limits
from dfolora.search.subspace import LoraSubspaceSpec, PromptSubspaceSpec
from dfolora.search.subspace.maps import drawn
from tests.conftest import random_batch, tiny_model
from tests.emulation import emulated_cuda

LENGTHS = [9, 7, 12]
SPECS = {
    "lora": (LoraSubspaceSpec(dim=96), 3 * 4 * 24 * 2 * 32 * 4),
    "prompt": (PromptSubspaceSpec(dim=96, positions=3), 3 * 96 * 3 * 32 * 4),
}
"""Each with the bytes of its maps in three layers of width 32."""


def built(spec, limits=None, device="cpu"):
    batch = random_batch(LENGTHS, [length - 1 for length in LENGTHS])
    backbone = Backbone(tiny_model("roberta").to(device), limits)
    return spec.build(backbone, batch.input_ids, batch.attention_mask, 0)


def maps_of(subspace):
    for layer in subspace._projections:
        yield from [layer] if isinstance(layer, torch.Tensor) else [*layer.down, *layer.up]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(
    ("free", "limits", "held"),
    [(10, Limits(), "cuda"), (9.9, Limits(), "cpu"), (1000, Limits(memory=100), "cpu")],
    ids=["a tenth of what is free", "more of it", "memory is limited"],
)
def test_small_maps_are_held_on_the_gpu(name, free, limits, held):
    spec, size = SPECS[name]
    with emulated_cuda(free=int(free * size)) as gpu:
        devices = {each.device.type for each in maps_of(built(spec, limits, "cuda"))}
        assert devices == {held}
        assert bool(gpu.traffic["pinned"]) == (held == "cpu")


@pytest.mark.parametrize("name", SPECS)
def test_any_number_of_threads_draws_the_same(name, monkeypatch):
    spec, _size = SPECS[name]
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append([*maps_of(built(spec))])
    assert all(map(torch.equal, *found))


def test_maps_come_in_the_order_of_their_blocks_whichever_is_drawn_first(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    last = Event()

    def draw(block, std):
        if block == 3:
            last.set()
        assert last.wait(10)
        return block, std

    assert drawn(draw, [0.0, 0.1, 0.2, 0.3]) == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3)]
