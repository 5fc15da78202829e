"""The trained baselines as methods: what they tell of a fit, and what they refuse."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dfolora.errors import UserError
from dfolora.methods import FewShotData, GradientTuning, TrainingSpec
from dfolora.methods.gradient import Adapter, FeatureHead, Lora, ModelTuning, PromptTuning
from dfolora.model.architecture import Architecture
from dfolora.model.backbone import Backbone
from dfolora.model.checkpoint import Checkpoint
from dfolora.record import Store
from pipelines.one_run.execute import execute
from tests.commands import composed
from tests.conftest import random_batch, tiny_model

SPEC = TrainingSpec(learning_rates=[0.01, 0.001], epochs=3, dev_every=1)


def data_of(label_ids) -> FewShotData:
    train = random_batch([9, 4, 11, 7, 8, 5], [0, 3, 5, 6, 2, 1])
    dev = random_batch([7, 3, 10, 7], [2, 1, 4, 0], seed=2)
    return FewShotData(train=train, dev=dev, label_ids=label_ids, metric="accuracy")


def fitted(trained, backbone, label_ids, spec=SPEC):
    fit = GradientTuning(trained=trained, training=spec).begin(backbone, data_of(label_ids), 0)
    return fit, list(fit)


def test_fit_tells_its_learning_rate_passes_and_size(label_ids):
    backbone = Backbone(tiny_model("bert"))
    fit, history = fitted(Adapter(bottleneck=2), backbone, label_ids)
    predictor = fit.predictor()
    assert predictor.searched == predictor.stored == 3 * 2 * (2 * 32 * 2 + 2 + 32)
    chosen = predictor.dev.calls
    rate = 0.0 if chosen == 0 else SPEC.learning_rates[chosen > 9]
    assert predictor.found == {"learning_rate": rate, "model_passes": 18}
    assert history[-1].step.calls == 18
    assert predictor.dev is history[-1].selected


def test_features_take_one_pass_of_the_model_whatever_the_epochs(label_ids, monkeypatch):
    backbone = Backbone(tiny_model("bert"))
    passed = []
    forward = backbone.forward
    monkeypatch.setattr(
        backbone,
        "forward",
        lambda **inputs: passed.append(len(inputs["input_ids"])) or forward(**inputs),
    )
    fit, history = fitted(FeatureHead(), backbone, label_ids)
    assert sum(passed) == 6 + 4  # train and dev rows, once each
    assert fit.predictor().found["model_passes"] == 1
    assert history[-1].step.calls == 18  # for an epoch is an epoch


def test_prediction_is_of_the_selected_tensors_on_any_batch(batch, label_ids):
    backbone = Backbone(tiny_model("roberta"))
    method = ModelTuning(head="classifier")
    fit, _ = fitted(method, backbone, label_ids)
    predictor = fit.predictor()
    with method.attached(backbone, label_ids, 0) as attached:
        predictor.dev.solution.put(attached.parameters)
        expected = attached.reader(batch)(torch.arange(8)).detach()
    torch.testing.assert_close(predictor.logits(batch), expected, rtol=0, atol=1e-5)
    assert not predictor.logits(batch).requires_grad


def test_predictor_before_any_step_is_the_start(batch, label_ids):
    backbone = Backbone(tiny_model("gpt2"))
    trained = Lora(rank=2, targets=["q", "k", "v"])
    fit = GradientTuning(trained=trained, training=SPEC).begin(backbone, data_of(label_ids), 0)
    predictor = fit.predictor()
    with trained.attached(backbone, label_ids, 0) as attached:
        expected = attached.reader(batch)(torch.arange(8)).detach()
    torch.testing.assert_close(predictor.logits(batch), expected, rtol=0, atol=1e-5)
    assert predictor.dev is None
    assert predictor.found == {"learning_rate": 0.0, "model_passes": 0}


def test_what_is_saved_is_what_was_selected(label_ids, tmp_path):
    fit, _ = fitted(Adapter(bottleneck=2), Backbone(tiny_model("bert")), label_ids)
    predictor = fit.predictor()
    predictor.save(str(tmp_path / "new" / "adapter"))
    saved = load_file(tmp_path / "new" / "adapter" / "trained.safetensors")
    selected = predictor.dev.solution.tensors
    assert saved.keys() == selected.keys()
    assert all(torch.equal(saved[name], selected[name]) for name in saved)


def test_divergence_of_all_rates_is_the_users_to_mend(label_ids):
    spec = replace(SPEC, learning_rates=[1e30])
    with pytest.raises(UserError, match=r"diverged with every learning rate of \[1e\+30\]"):
        fitted(ModelTuning(), Backbone(tiny_model("bert")), label_ids, spec)


def test_gradients_through_8_bits_are_refused_and_features_are_not():
    given = Architecture.of(tiny_model("bert").config, quantized=True)
    with pytest.raises(UserError, match="precision=int8 lets no gradient through the model"):
        GradientTuning(trained=Lora(), training=SPEC).check(given)
    GradientTuning(trained=FeatureHead(), training=SPEC).check(given)


def test_check_is_of_training_and_of_what_is_trained():
    given = Architecture.of(tiny_model("bert").config)
    with pytest.raises(UserError, match=r"training\.epochs=0"):
        GradientTuning(trained=Lora(), training=replace(SPEC, epochs=0)).check(given)
    with pytest.raises(UserError, match="64 trained tokens"):
        GradientTuning(trained=PromptTuning(tokens=64), training=SPEC).check(given)


MISTAKES = {
    "no gradient in 8 bits": (
        ["method=bitfit", "precision=int8"], r"precision=int8 lets no gradient"),
    "weights that are streamed": (
        ["method=feature_mlp", "engine.stream=true"], r"engine\.stream=true keeps the layers'"),
    "an unknown layer": (
        ["method=adapter", "method.trained.layers=[3]"], r"layers=\[3\]; .* subset of 0 to 2"),
    "half of a fused module": (
        ["method=lora", "model=mini_gpt2"], r"Got q, v, .* attn.c_attn.*; name k too"),
    "a prompt too long": (
        ["method=prompt_tuning", "prompt_tokens=256"], r"256 trained tokens leave no room"),
    "a prompt that leaves no room for the text": (
        ["method=prompt_tuning", "data.max_length=10"], r"10 trained tokens .* limit of 10"),
    "no learning rate": (
        ["method=lora", "method.training.learning_rates=[]"], r"learning_rates=\[\] must be"),
    "no training": (["method=lora", "method.training=null"], r"method.training=None must name"),
    "no room at once": (["method=lora", "engine.tokens=0"], r"engine.tokens=0 must be a whole"),
    "an unknown key": (
        ["method=lora", "+method.trained.foo=1"], r"method cannot be built: .*argument 'foo'"),
    "an unknown head": (["method=model_tuning", "method.trained.head=x"], r"Unknown .*head=x"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_before_any_weight_is_loaded(name, in_folder, monkeypatch):
    overrides, message = MISTAKES[name]
    monkeypatch.setattr(Checkpoint, "load_backbone", lambda *_: 1 / 0)
    config, choices = composed(*overrides)
    with pytest.raises(UserError, match=message):
        execute(config, choices, sweep_id="s")


def test_run_is_recorded_with_its_rate_and_curves(in_folder):
    config, choices = composed("method=lora", "method.training.epochs=4", "data.k=8")
    outcome = execute(config, choices, sweep_id="s")
    client = Store(f"sqlite:///{in_folder}/mlflow.db")._client
    run = client.get_run(outcome.run_id)
    assert run.data.metrics["calls"] == 3 * 4 * 3
    assert run.data.metrics["fitted/model_passes"] == 3 * 4 * 3
    assert run.data.metrics["fitted/learning_rate"] in (0, 0.001, 0.003, 0.01)
    assert run.data.metrics["params/searched"] == 3 * 2 * 2 * 128 * 8
    steps = [point.step for point in client.get_metric_history(outcome.run_id, "train/loss")]
    assert steps == list(range(3, 37, 3))
    looks = [point.step for point in client.get_metric_history(outcome.run_id, "dev/score")]
    assert looks == [0, 9, 12, 21, 24, 33, 36]
    folder = Path(client.download_artifacts(outcome.run_id, ""))
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    assert (folder / "journal.jsonl").read_text().count('"train/step_size"') == 12
    assert not {"optimizer", "rank"} & set(run.data.tags)
    assert "budget" not in run.data.params
    assert math.isfinite(run.data.metrics["test/score"])
