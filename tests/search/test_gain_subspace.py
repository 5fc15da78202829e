"""Gains of an adapter's layers: what 0, -1 and others give, what PEFT reads, what is refused."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from dfolora.engine.forward import Engine
from dfolora.errors import UserError
from dfolora.methods import FewShotData, LayerwiseSearch
from dfolora.model import Backbone, load_adapter
from dfolora.search.optim import Cma
from dfolora.search.subspace import GainSubspaceSpec
from pipelines.one_run.identity import settings_of
from tests.adapters import random_adapter
from tests.conftest import tiny_model
from tests.reference.one_candidate import answer_logits, merged_model

ROUNDING = {"rtol": 0, "atol": 1e-5}
ALL_MAPS = ("q", "k", "v", "o")


@pytest.fixture
def given(backbone, tmp_path):
    return random_adapter(tmp_path / "given", backbone, 1, targets=ALL_MAPS)


def built(backbone, batch, folder):
    spec = GainSubspaceSpec(adapter=folder)
    return spec.build(backbone, batch.input_ids, batch.attention_mask, 0)


def scaled(model_backbone, folder, gains):
    """The model with each layer's update, times its gain, in its weights."""
    layers = load_adapter(Path(folder), model_backbone)
    for layer, lora in layers.items():
        for factors in lora.factors.values():
            factors.up.mul_(1 + gains[layer])
    return merged_model(model_backbone, layers.values())


def test_zero_is_the_adapter_to_the_bit(backbone, batch, label_ids, given):
    subspace, engine = built(backbone, batch, given), Engine(backbone, batch, label_ids)
    expected = engine(load_adapter(Path(given), backbone))
    zero = np.zeros((1, 3))
    assert torch.equal(engine({}, subspace.interventions(0, zero)), expected)
    assert torch.equal(engine(subspace.incumbents(zero)), expected)
    assert not subspace.incumbents(zero, without=[0])
    assert (expected - engine({})).abs().max() > 1e-2


def test_minus_one_is_the_base_model(backbone, batch, label_ids, given):
    subspace, engine = built(backbone, batch, given), Engine(backbone, batch, label_ids)
    assert torch.equal(engine({}, subspace.interventions(0, -np.ones((1, 3)))), engine({}))


def test_each_layer_has_its_own_gain(backbone, batch, label_ids, given):
    subspace, engine = built(backbone, batch, given), Engine(backbone, batch, label_ids)
    candidates = np.random.default_rng(0).normal(size=(4, 3))
    found = engine({}, subspace.interventions(0, candidates))
    for ours, gains in zip(found, candidates, strict=True):
        theirs = answer_logits(scaled(backbone, given, gains), batch, label_ids)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # large updates
    assert (found[0] - found[1]).abs().max() > 1e-2


def test_gain_of_a_layer_that_is_not_adapted_changes_nothing(backbone, batch, label_ids, tmp_path):
    folder = random_adapter(tmp_path / "given", backbone, 1, layers=(0, 2))
    subspace, engine = built(backbone, batch, folder), Engine(backbone, batch, label_ids)
    one, other = engine({}, subspace.interventions(0, np.array([[0.5, 0, 0], [0.5, 9, 0]])))
    assert torch.equal(one, other)


def searched(folder, data, backbone, budget):
    method = LayerwiseSearch(
        subspace=GainSubspaceSpec(adapter=folder),
        optimizer=partial(Cma, sigma=0.3, population=6), budget=budget, dev_interval=6,
    )  # fmt: skip
    fit = method.begin(backbone, data, seed=0)
    return [progress.step.loss for progress in fit], fit.predictor()


def test_search_finds_gains_that_peft_reads(family, backbone, batch, label_ids, given, tmp_path):
    """Dev is train, so what is selected has the lowest loss that the search saw."""
    data = FewShotData(train=batch, dev=batch, label_ids=label_ids, metric="accuracy")
    losses, predictor = searched(given, data, backbone, 61)
    start = answer_logits(scaled(backbone, given, np.zeros(3)), batch, label_ids)
    first = torch.nn.functional.cross_entropy(start, batch.labels).item()
    assert losses[0] == pytest.approx(first, abs=1e-5)  # a search starts from the adapter
    assert losses[-1] < first - 1e-2
    assert predictor.searched == 3
    assert [*predictor.found] == ["gain/0", "gain/1", "gain/2"]
    theirs = answer_logits(scaled(backbone, given, [*predictor.found.values()]), batch, label_ids)
    torch.testing.assert_close(predictor.logits(batch), theirs, rtol=0, atol=1e-4)
    predictor.save(tmp_path / "gained")
    model = PeftModel.from_pretrained(tiny_model(family), tmp_path / "gained").eval()
    theirs = answer_logits(model, batch, label_ids)
    torch.testing.assert_close(predictor.logits(batch), theirs, rtol=0, atol=1e-4)


def test_no_budget_is_the_adapter(family, backbone, batch, label_ids, given, tmp_path):
    data = FewShotData(train=batch, dev=batch, label_ids=label_ids, metric="accuracy")
    _, predictor = searched(given, data, backbone, 0)
    theirs = PeftModel.from_pretrained(tiny_model(family), given).eval()
    expected = answer_logits(theirs, batch, label_ids)
    torch.testing.assert_close(predictor.logits(batch), expected, rtol=0, atol=1e-4)
    predictor.save(tmp_path / "same")
    same = PeftModel.from_pretrained(tiny_model(family), tmp_path / "same").eval()
    torch.testing.assert_close(answer_logits(same, batch, label_ids), expected, **ROUNDING)


def test_runs_are_told_apart_by_what_the_adapter_holds(tmp_path):
    backbone = Backbone(tiny_model("roberta"))

    class Model:
        def identity(self):
            return "model"

    def settings(folder):
        method = LayerwiseSearch(subspace=GainSubspaceSpec(adapter=folder))
        plain = {"data": {}, "method": {"subspace": {"adapter": folder}}}
        return settings_of(plain, Model(), method)

    one, moved, other = (
        random_adapter(tmp_path / name, backbone, seed)
        for name, seed in (("one", 1), ("moved", 1), ("other", 2))
    )
    assert settings(one) == settings(moved) != settings(other)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (None, r"method\.subspace\.adapter must be non-empty text, got None"),
        ("nowhere", r"nowhere holds no adapter_config\.json; give a folder that PEFT's"),
    ],
)
def test_what_is_no_adapter_is_refused_before_weights_are_read(adapter, message):
    architecture = Backbone(tiny_model("roberta")).architecture
    with pytest.raises(UserError, match=message):
        GainSubspaceSpec(adapter=adapter).check(architecture)


def test_adapter_that_changes_nothing_is_refused(batch, tmp_path):
    backbone = Backbone(tiny_model("roberta"))
    folder = random_adapter(tmp_path / "untrained", backbone, 0, std=0.0)
    with pytest.raises(UserError, match="untrained changes nothing, for all its B are 0"):
        built(backbone, batch, folder)
