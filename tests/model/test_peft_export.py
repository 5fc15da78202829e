"""The saved folder gives our logits in PEFT, on a model that nobody has touched."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from dfolora.engine.forward import Engine
from dfolora.methods import FewShotData, LayerwiseSearch
from dfolora.model import Backbone
from dfolora.model.peft_export import save_adapter
from dfolora.search.optim import RandomSearch
from dfolora.search.subspace import LoraSubspaceSpec
from tests.conftest import tiny_model
from tests.reference.one_candidate import answer_logits
from tests.searching import evaluator_of

TARGETS = [("q", "k"), ("v",), ("o",), ("q", "k", "v", "o"), ("k", "o")]
CLOSE = {"rtol": 0, "atol": 1e-5}  # float32, other summation order


def in_peft(family, folder):
    return PeftModel.from_pretrained(tiny_model(family), folder).eval()


@pytest.mark.parametrize("targets", TARGETS, ids="".join)
@pytest.mark.parametrize("rank", [1, 3])
def test_peft_gives_our_logits(family, backbone, batch, label_ids, targets, rank, tmp_path):
    dim = 4 * 2 * len(targets)
    spec = LoraSubspaceSpec(dim=dim, rank=rank, targets=targets, scaling=0.7)
    subspace = spec.build(backbone, batch.input_ids, batch.attention_mask, 0)
    solution = np.random.default_rng(0).normal(size=(3, dim))
    incumbents = subspace.incumbents(solution)
    save_adapter(tmp_path / "adapter", backbone, incumbents.values())

    ours = Engine(backbone, batch, label_ids)(incumbents)[0]
    model = in_peft(family, tmp_path / "adapter")
    theirs = answer_logits(model, batch, label_ids)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    merged = answer_logits(model.merge_and_unload(), batch, label_ids)
    torch.testing.assert_close(ours, merged, **CLOSE)
    base = answer_logits(tiny_model(family), batch, label_ids)
    assert (theirs - base).abs().max() > 1e-2  # the adapter does something


def test_peft_finds_the_causal_model_by_the_folder_alone(batch, label_ids, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    backbone = Backbone(AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval())
    subspace = LoraSubspaceSpec(dim=16, rank=2).build(
        backbone, batch.input_ids, batch.attention_mask, 0
    )
    incumbents = subspace.incumbents(np.random.default_rng(0).normal(size=(3, 16)))
    save_adapter(tmp_path / "adapter", backbone, incumbents.values())
    whole = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    ours = Engine(backbone, batch, label_ids)(incumbents)[0]
    torch.testing.assert_close(ours, answer_logits(whole, batch, label_ids), **CLOSE)
    merged = whole.merge_and_unload()
    torch.testing.assert_close(ours, answer_logits(merged, batch, label_ids), **CLOSE)


@pytest.mark.parametrize("targets", [("q", "k"), ("q", "k", "v", "o")], ids="".join)
def test_peft_gives_the_loss_that_a_search_reported(
    family, backbone, batch, label_ids, targets, tmp_path
):
    """Dev is train, so the solution selected has the losses that the search saw."""
    method = LayerwiseSearch(
        subspace=LoraSubspaceSpec(dim=96, alpha=2.0, targets=targets),
        optimizer=partial(RandomSearch, population=4),
        budget=60, dev_interval=10,
    )  # fmt: skip
    data = FewShotData(train=batch, dev=batch, label_ids=label_ids, metric="accuracy")
    fit = method.begin(backbone, data, seed=0)
    history = list(fit)
    predictor = fit.predictor()
    predictor.save(tmp_path)
    logits = answer_logits(in_peft(family, tmp_path), batch, label_ids)
    torch.testing.assert_close(predictor.logits(batch), logits, **CLOSE)
    loss = torch.nn.functional.cross_entropy(logits, batch.labels).item()
    assert predictor.dev.loss == pytest.approx(loss, abs=1e-5)
    seen = [each.step.loss for each in history]
    assert min(abs(loss - value) for value in seen) < 1e-5
    base = answer_logits(tiny_model(family), batch, label_ids)
    before = torch.nn.functional.cross_entropy(base, batch.labels).item()
    assert loss < before - 1e-2  # something was found


def test_evaluator_reports_the_loss_that_peft_gives(family, backbone, batch, label_ids, tmp_path):
    """Of a candidate among others, at any layer."""
    evaluator, subspace = evaluator_of(backbone, batch, label_ids, targets=("q", "v"))
    rng = np.random.default_rng(1)
    solution, candidates = rng.normal(size=(3, 96)), rng.normal(size=(4, 96))
    for block in range(3):
        reported = evaluator(solution, block, candidates).losses[2]
        chosen = solution.copy()
        chosen[block] = candidates[2]
        folder = tmp_path / str(block)
        save_adapter(folder, backbone, subspace.incumbents(chosen).values())
        logits = answer_logits(in_peft(family, folder), batch, label_ids)
        loss = torch.nn.functional.cross_entropy(logits, batch.labels).item()
        assert reported == pytest.approx(loss, abs=1e-5)


def test_config_names_modules_in_full_and_scales_by_one(backbone, batch, tmp_path):
    spec = LoraSubspaceSpec(dim=16, targets=("q", "o"))
    subspace = spec.build(backbone, batch.input_ids, batch.attention_mask, 0)
    save_adapter(tmp_path, backbone, [subspace.intervention(1, np.ones((1, 16)))])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 2
    assert len(config["target_modules"]) == 2
    assert all(backbone.model.get_submodule(name) for name in config["target_modules"])
