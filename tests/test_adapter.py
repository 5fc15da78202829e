"""The saved folder gives our logits in PEFT, on a model that nobody has touched."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel

from dfolora.adapter import save_adapter
from dfolora.subspace import SubspaceSpec
from tests.conftest import tiny_model
from tests.reference.one_candidate import answer_logits

TARGETS = [("q", "k"), ("v",), ("o",), ("q", "k", "v", "o"), ("k", "o")]


@pytest.mark.parametrize("targets", TARGETS, ids="".join)
@pytest.mark.parametrize("rank", [1, 3])
def test_peft_gives_our_logits(family, backbone, batch, label_ids, targets, rank, tmp_path):
    dim = 4 * 2 * len(targets)
    spec = SubspaceSpec(dim=dim, rank=rank, targets=targets, scaling=0.7)
    subspace = spec.build(backbone, batch.input_ids, batch.attention_mask, 0)
    solution = np.random.default_rng(0).normal(size=(3, dim))
    layers = [subspace.intervention(layer, solution[layer : layer + 1]) for layer in range(3)]
    save_adapter(tmp_path / "adapter", backbone, layers)

    peft_model = PeftModel.from_pretrained(tiny_model(family), tmp_path / "adapter").eval()
    with backbone.with_lora(layers):
        ours = backbone.answer_logits(
            batch.input_ids, batch.attention_mask, batch.answer, label_ids
        )
    theirs = answer_logits(peft_model, batch, label_ids)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # float32, other summation order
    base = answer_logits(tiny_model(family), batch, label_ids)
    assert (theirs - base).abs().max() > 1e-2  # the adapter does something


def test_config_names_modules_in_full_and_scales_by_one(backbone, batch, tmp_path):
    spec = SubspaceSpec(dim=16, targets=("q", "o"))
    subspace = spec.build(backbone, batch.input_ids, batch.attention_mask, 0)
    save_adapter(tmp_path, backbone, [subspace.intervention(1, np.ones((1, 16)))])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 2
    assert len(config["target_modules"]) == 2
    assert all(backbone.model.get_submodule(name) for name in config["target_modules"])
