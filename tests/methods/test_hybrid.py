"""The hybrid of gradients and search: its ends are the methods that it is made of."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from dfolora.engine import classify
from dfolora.errors import UserError
from dfolora.methods import FewShotData, GradientTuning, Hybrid, LayerwiseSearch, TrainingSpec
from dfolora.methods.gradient import Lora
from dfolora.methods.gradient.hybrid import importance
from dfolora.model import Architecture, Backbone, load_adapter
from dfolora.search.optim import ZerothOrder
from dfolora.search.subspace import ParameterSubspaceSpec
from tests.conftest import random_batch, tiny_model
from tests.reference.one_candidate import answer_logits, merged_model

LORA = Lora(rank=2, alpha=6, targets=("q", "k", "v"))  # as GPT-2 has them in one module
MEZO = partial(
    ZerothOrder, directions=1, sides="two", scale="none", momentum=0.0, sigma=0.02, lr=2.0
)
METHOD = Hybrid(
    trained=LORA, optimizer=MEZO, budget=43, learning_rate=0.02, batch_size=4, dev_interval=9
)


def data_of(label_ids) -> FewShotData:
    train = random_batch([9, 4, 11, 7, 8, 5], [0, 3, 5, 6, 2, 1])
    dev = random_batch([7, 3, 10, 7], [2, 1, 4, 0], seed=2)
    return FewShotData(train=train, dev=dev, label_ids=label_ids, metric="accuracy")


def fitted(method, family, label_ids, data=None):
    backbone = Backbone(tiny_model(family))
    fit = method.begin(backbone, data or data_of(label_ids), 3)
    return fit, list(fit)


def looks(history):
    return [(look.calls, look.score, look.loss) for each in history for look in each.looks]


def test_all_layers_trained_is_gradient_tuning(family, label_ids):
    """To the bit, up to the predictor: it computes with the engine, GradientTuning with PEFT."""
    spec = TrainingSpec(learning_rates=[0.02], epochs=14, batch_size=4, dev_every=3)
    tuned, expected = fitted(GradientTuning(trained=LORA, training=spec), family, label_ids)
    fit, found = fitted(replace(METHOD, share=1.0), family, label_ids)
    assert found[-1].step.calls == 42  # a rest of one call makes no epoch
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.step.losses, theirs.step.losses)
        assert (ours.step.calls, ours.step.loss) == (theirs.step.calls, theirs.step.loss)
    assert looks(found) == looks(expected)
    batch = data_of(label_ids).dev
    one, other = (each.predictor().logits(batch) for each in (fit, tuned))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert fit.predictor().searched == tuned.predictor().searched


def test_no_layer_trained_is_mezo_on_the_parameters(family, label_ids):
    """To the bit. Looks at dev are of PEFT's pass, not of the engine's: equal to rounding."""
    search = LayerwiseSearch(
        subspace=ParameterSubspaceSpec(rank=2, targets=LORA.targets, scaling=3.0),
        optimizer=MEZO, budget=43, layers_per_block="all", incumbent="center", dev_interval=9,
    )  # fmt: skip
    _, expected = fitted(search, family, label_ids)
    fit, found = fitted(replace(METHOD, share=0.0), family, label_ids)
    assert found[-1].step.calls == 43  # of a last pair there is one
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.step.losses, theirs.step.losses)
        np.testing.assert_array_equal(ours.step.solution, theirs.step.solution)
        assert ours.step.calls == theirs.step.calls
    assert np.ptp([losses for each in found for losses in each.step.losses]) > 1e-3
    np.testing.assert_allclose(looks(found)[-1], looks(expected)[-1], rtol=0, atol=1e-5)
    assert not any(fit.predictor().found.values())  # nothing was ranked


@pytest.mark.parametrize("budget", range(40, 48))
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_budget_is_met_at_any_remainder(budget, share, label_ids):
    method = replace(METHOD, budget=budget, share=share, dev_interval=100)
    _, history = fitted(method, "roberta", label_ids)
    calls = [each.step.calls for each in history]
    assert calls[-1] == (budget // 3 * 3 if share == 1 else budget)
    assert calls == sorted(calls)
    assert len([each for each in history if each.looks]) == 2  # the start and the end


def test_an_epoch_and_a_pair_take_turns(label_ids):
    _, history = fitted(replace(METHOD, budget=33), "roberta", label_ids)
    spent = np.diff([3, *(each.step.calls for each in history)])  # 3 rank the layers
    assert spent.tolist() == [3, 2] * 6


def test_importance_is_of_the_whole_train_sets_gradient(family, backbone, label_ids, monkeypatch):
    """The engine's pieces are summed up: a row at a time, beside one padded pass."""
    data = data_of(label_ids)
    monkeypatch.setattr(Backbone, "tokens", 11)
    model = tiny_model(family)
    modules = backbone.architecture.whole_modules(LORA.targets)
    layers = [
        [model.get_submodule(f"{backbone.architecture.family.layers}.{layer}.{module}").weight
         for module in modules]
        for layer in range(3)
    ]  # fmt: skip
    for weight in (weight for own in layers for weight in own):
        weight.requires_grad_(True)
    whole = data_of(label_ids).train
    output = model(input_ids=whole.input_ids, attention_mask=whole.attention_mask).logits
    answers = output[torch.arange(6), whole.answer][:, label_ids]
    torch.nn.functional.cross_entropy(answers, whole.labels).backward()
    expected = [sum((w.grad * w).abs().sum().item() for w in own) for own in layers]
    np.testing.assert_allclose(importance(backbone, data, LORA), expected, rtol=1e-4)
    assert len({round(score, 6) for score in expected}) == 3
    assert not any(weight.requires_grad for weight in backbone.model.parameters())
    assert all(weight.grad is None for weight in backbone.model.parameters())


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_most_important_layers_are_trained_and_the_others_searched(share, label_ids):
    fit, history = fitted(replace(METHOD, share=share), "roberta", label_ids)
    predictor = fit.predictor()
    scores = [predictor.found[f"importance/{layer}"] for layer in range(3)]
    count = 1 if share < 0.5 else 2
    top = sorted(np.argsort(scores)[::-1][:count].tolist())
    last = history[-1].step
    assert last.solution.shape == (1, (3 - count) * 3 * 2 * (32 + 32))
    names = predictor.dev.solution.tensors
    trained = {int(name.split("layer.")[1].split(".")[0]) for name in names if name != "z"}
    assert sorted(trained) == top
    assert predictor.searched == 3 * 3 * 2 * (32 + 32)


def test_each_side_sees_what_the_other_has_come_to(family, label_ids):
    """Losses beside those of merged weights, at every step. Equal to rounding."""
    method = replace(METHOD, budget=28, batch_size=6, dev_interval=1)
    backbone, data = Backbone(tiny_model(family)), data_of(label_ids)
    fit = method.begin(backbone, data, 3)
    clean = Backbone(tiny_model(family))

    def trained():
        """The factors that are attached now."""
        held = backbone.model.named_parameters()
        present = {f"base_model.model.{name}": value.clone() for name, value in held}
        return {layer: LORA.factors(backbone, layer, present) for layer in fit._top}

    def loss_of(changes, batch):
        model = merged_model(clean, changes.values())
        logits = answer_logits(model, batch, label_ids)
        return torch.nn.functional.cross_entropy(logits, batch.labels).item()

    before: Any = None
    center, kinds = {}, []
    for progress in fit:
        step: Any = progress.step
        if hasattr(step, "candidates"):
            for candidate, loss in zip(step.candidates, step.losses, strict=True):
                changes = trained() | fit._subspace.interventions(0, candidate[None])
                assert loss == pytest.approx(loss_of(changes, data.train), abs=2e-5)
            center = fit._subspace.interventions(0, step.solution)
        elif before is not None:
            assert step.losses[0] == pytest.approx(loss_of(before | center, data.train), abs=2e-5)
        before = trained()
        assert progress.looks[-1].loss == pytest.approx(
            loss_of(before | center, data.dev), abs=2e-5
        )
        kinds.append(type(step).__name__)
    assert kinds == ["Epoch", "Generation"] * 5
    assert loss_of(before, data.dev) != pytest.approx(loss_of(before | center, data.dev), abs=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_is_saved_is_read_by_peft_and_by_the_library(
    share, family, batch, label_ids, tmp_path
):
    """To float32, and dev is train, so that what was learned is chosen."""
    data = data_of(label_ids)
    data = replace(data, dev=data.train)
    fit, _ = fitted(replace(METHOD, share=share, budget=90), family, label_ids, data)
    predictor = fit.predictor()
    predictor.save(tmp_path)
    logits = predictor.logits(batch)
    theirs = PeftModel.from_pretrained(tiny_model(family), tmp_path).eval()
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(logits, answer_logits(theirs, batch, label_ids), **close)
    backbone = Backbone(tiny_model(family))
    loaded = classify(backbone, label_ids, batch, load_adapter(tmp_path, backbone))
    torch.testing.assert_close(logits, loaded, **close)
    base = answer_logits(tiny_model(family), batch, label_ids)
    assert (logits - base).abs().max() > 1e-2


def test_predictor_before_any_step_is_the_model_itself(batch, label_ids):
    fit = METHOD.begin(Backbone(tiny_model("bert")), data_of(label_ids), 0)
    base = answer_logits(tiny_model("bert"), batch, label_ids)
    torch.testing.assert_close(fit.predictor().logits(batch), base, rtol=0, atol=1e-5)


def test_divergence_is_the_users_to_mend(label_ids):
    with pytest.raises(UserError, match=r"diverged.*lower method\.learning_rate=1e\+30"):
        fitted(replace(METHOD, learning_rate=1e30), "bert", label_ids)


def test_layers_of_a_broken_model_cannot_be_ranked(label_ids):
    model = tiny_model("bert")
    model.bert.encoder.layer[1].attention.self.query.weight.data[0, 0] = torch.nan
    fit = METHOD.begin(Backbone(model), data_of(label_ids), 0)
    with pytest.raises(UserError, match="cannot be ranked"):
        list(fit)
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.5}, r"method\.share=1\.5 must be"),
        ({"gradient_calls": -1}, r"method\.gradient_calls=-1 must be"),
        ({"learning_rate": 0}, r"method\.learning_rate=0 must be a positive number"),
        ({"batch_size": 0}, r"method\.batch_size=0 must be a whole number"),
        ({"weight_decay": -1}, r"method\.weight_decay=-1 must be"),
        ({"clip": 0}, r"method\.clip=0 must be"),
        ({"budget": 0}, r"budget=0 must be a whole number, 1 or more"),
        ({"dev_interval": 0}, r"dev_interval=0 must be"),
        ({"trained": replace(LORA, rank=0)}, r"method\.trained\.rank=0"),
        ({"budget": 2, "share": 1.0}, r"budget=2 leaves 0 epochs and 0 calls of a search"),
        ({"budget": 1, "share": 0.0}, r"leaves 0 epochs and 1 calls.*needs 2 for a generation"),
        ({"budget": 7}, r"budget=7 leaves 0 epochs and 4 calls"),
        ({"gradient_calls": 1.0}, r"leaves 13 epochs and 1 calls.*gradient_calls=1\.0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    architecture = Architecture.of(tiny_model("bert").config)
    METHOD.check(architecture)
    with pytest.raises(UserError, match=message):
        replace(METHOD, **changes).check(architecture)


def test_a_model_without_gradients_is_refused():
    for given, message in (
        ({"quantized": True}, "precision=int8 lets no gradient through"),
        ({"streamed": True}, r"engine\.stream=true keeps the layers' weights"),
    ):
        with pytest.raises(UserError, match=message):
            METHOD.check(Architecture.of(tiny_model("bert").config, **given))
