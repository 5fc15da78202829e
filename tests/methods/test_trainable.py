"""What is trained: its logits beside obvious ones, its start, and what it leaves behind."""

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional

from dfolora.methods.gradient import (
    Adapter,
    BitFit,
    FeatureHead,
    Lora,
    ModelTuning,
    PrefixTuning,
    PromptTuning,
)
from dfolora.model.backbone import Backbone
from tests.conftest import random_batch, tiny_model
from tests.methods.test_every_method import state
from tests.reference import trained_model as reference
from tests.reference.one_candidate import answer_logits

CLOSE = {"rtol": 0, "atol": 2e-5}  # float32, other summation order
LAYERS = {"roberta": "roberta.encoder.layer", "bert": "bert.encoder.layer", "gpt2": "transformer.h"}
QKV = ["q", "k", "v"]
PROMPTED: dict[str, Any] = {
    "model_tuning": ModelTuning(),
    "adapter": Adapter(bottleneck=5),
    "adapter_of_one_layer": Adapter(bottleneck=3, layers=[1], after=["ffn"]),
    "bitfit": BitFit(),
    "bitfit_of_ffn": BitFit(biases=["up", "o"]),
    "lora": Lora(rank=3, alpha=6, targets=QKV),
    "prompt_tuning": PromptTuning(tokens=4),
    "p_tuning_v2": PrefixTuning(tokens=4),
}
HEADED = {
    "classifier": ModelTuning(head="classifier"),
    "feature_mlp": FeatureHead(head="mlp"),
    "feature_bilstm": FeatureHead(head="bilstm"),
}
ALL: dict[str, Any] = {**PROMPTED, **HEADED}


@pytest.fixture
def model(family):
    """With filler words in its vocabulary."""
    return tiny_model(family, vocab_size=1100)


@pytest.fixture
def backbone(model):
    return Backbone(model)


@contextmanager
def moved(trainable, backbone, label_ids, *, by=0.3):
    """Attached, with parameters away from their start, as training would have them."""
    with trainable.attached(backbone, label_ids, 0) as attached:
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for value in attached.parameters.values():
                value += by * torch.randn(value.shape, generator=generator)
        yield attached


def logits_of(attached, batch):
    return attached.reader(batch)(torch.arange(len(batch.labels)))


def copied(attached):
    return {name: value.detach().clone() for name, value in attached.parameters.items()}


@pytest.mark.parametrize("name", PROMPTED)
def test_start_is_the_model_itself(name, backbone, batch, label_ids):
    """But for tokens that stand before the prompt, whose start is the next test's."""
    expected = answer_logits(backbone.model, batch, label_ids)
    with PROMPTED[name].attached(backbone, label_ids, 0) as attached:
        got = logits_of(attached, batch).detach()
        assert not attached.new_head
    if name in ("prompt_tuning", "p_tuning_v2"):
        assert (got - expected).abs().max() > 1e-3
    else:
        torch.testing.assert_close(got, expected, **CLOSE)


def test_prompt_starts_as_filler_words(family, backbone, batch, label_ids):
    """So that the start is the model on these words before the text."""
    with PromptTuning(tokens=4).attached(backbone, label_ids, 0) as attached:
        got = logits_of(attached, batch).detach()
    fillers = torch.arange(1000, 1004).expand(len(batch.labels), 4)
    longer = replace(
        batch,
        input_ids=torch.cat([fillers, batch.input_ids], dim=1),
        attention_mask=functional.pad(batch.attention_mask, (4, 0), value=1),
        answer=batch.answer + 4,
    )
    torch.testing.assert_close(got, answer_logits(backbone.model, longer, label_ids), **CLOSE)


def test_model_tuning_is_a_copy_with_these_weights(backbone, batch, label_ids):
    with moved(ModelTuning(), backbone, label_ids, by=0.05) as attached:
        changed = reference.loaded(backbone.model, copied(attached))
        got = logits_of(attached, batch).detach()
    torch.testing.assert_close(got, answer_logits(changed, batch, label_ids), **CLOSE)
    assert (got - answer_logits(backbone.model, batch, label_ids)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["bitfit", "bitfit_of_ffn"])
def test_bitfit_is_a_copy_with_these_biases(name, backbone, batch, label_ids):
    with moved(PROMPTED[name], backbone, label_ids) as attached:
        assert all(path.endswith(".bias") for path in attached.parameters)
        changed = reference.loaded(backbone.model, copied(attached))
        got = logits_of(attached, batch).detach()
    torch.testing.assert_close(got, answer_logits(changed, batch, label_ids), **CLOSE)
    assert (got - answer_logits(backbone.model, batch, label_ids)).abs().max() > 0.1


def test_lora_is_a_copy_with_merged_weights(backbone, batch, label_ids):
    with moved(Lora(rank=3, alpha=6, targets=[*QKV, "o"]), backbone, label_ids) as attached:
        factors = {}
        for name, value in copied(attached).items():
            path, _, which = name.removeprefix("base_model.model.").partition(".lora_")
            factors.setdefault(path, {})[which[0]] = value
        pairs = {path: (both["A"], both["B"]) for path, both in factors.items()}
        got = logits_of(attached, batch).detach()
        # Inside the context the model holds PEFT's modules.
        backbone_is_changed = type(backbone.model.get_submodule(next(iter(pairs)))).__module__
    assert backbone_is_changed.startswith("peft")
    changed = reference.lora_merged(backbone.model, pairs, 6 / 3)
    torch.testing.assert_close(got, answer_logits(changed, batch, label_ids), **CLOSE)
    assert (got - answer_logits(backbone.model, batch, label_ids)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["adapter", "adapter_of_one_layer"])
def test_adapters_are_bottlenecks_after_the_maps(name, family, backbone, batch, label_ids):
    with moved(PROMPTED[name], backbone, label_ids) as attached:
        adapters = {}
        for path, value in copied(attached).items():
            module, _, tensor = path.partition(".adapter.")
            adapters.setdefault(module, {})[tensor] = value
        got = logits_of(attached, batch).detach()
    after = {"gpt2": ("attn.c_proj", "mlp.c_proj")}.get(
        family, ("attention.output.dense", "output.dense")
    )
    every = {f"{LAYERS[family]}.{layer}.{module}" for layer in range(3) for module in after}
    expected = every if name == "adapter" else {f"{LAYERS[family]}.1.{after[1]}"}
    assert set(adapters) == expected
    changed = reference.adapted(backbone.model, adapters)
    torch.testing.assert_close(got, answer_logits(changed, batch, label_ids), **CLOSE)
    assert (got - answer_logits(backbone.model, batch, label_ids)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning_v2", "lora"])
def test_peft_folder_gives_the_same_logits(name, family, backbone, batch, label_ids, tmp_path):
    """By PEFT's own forward, vocabulary head and all, on one row at a time without padding."""
    with moved(PROMPTED[name], backbone, label_ids) as attached:
        attached.save(tmp_path)
        got = logits_of(attached, batch).detach()
    fresh = tiny_model(family, vocab_size=1100)
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    lengths = batch.attention_mask.sum(-1).tolist()
    shift = 4 if name == "prompt_tuning" else 0
    for row, length in enumerate(lengths):
        ids = batch.input_ids[row : row + 1, :length]
        logits = loaded(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.detach()
        expected = logits[0, batch.answer[row] + shift, label_ids]
        torch.testing.assert_close(got[row], expected, **CLOSE)
    assert got.std() > 0.1


@pytest.mark.parametrize("name", ["model_tuning", "bitfit"])
def test_saved_tensors_load_into_a_model(name, family, backbone, batch, label_ids, tmp_path):
    with moved(PROMPTED[name], backbone, label_ids, by=0.05) as attached:
        attached.save(tmp_path / "new")
        got = logits_of(attached, batch).detach()
    tensors = load_file(tmp_path / "new" / "trained.safetensors")
    fresh = reference.loaded(tiny_model(family, vocab_size=1100), tensors)
    torch.testing.assert_close(answer_logits(fresh, batch, label_ids), got, **CLOSE)


def read_as_text(batch, family):
    """The same rows, read as ``TextEncoder`` says."""
    lengths = batch.attention_mask.sum(-1)
    answer = lengths - 1 if family == "gpt2" else torch.zeros_like(lengths)
    return replace(batch, answer=answer)


def test_classifier_is_linear_on_a_tuned_copys_feature(family, backbone, batch, label_ids):
    batch = read_as_text(batch, family)
    with moved(ModelTuning(head="classifier"), backbone, label_ids, by=0.05) as attached:
        tensors = copied(attached)
        got = logits_of(attached, batch).detach()
        assert attached.new_head
    weight, bias = tensors.pop("classifier.weight"), tensors.pop("classifier.bias")
    body = LAYERS[family].partition(".")[0]
    assert set(tensors) == {
        f"{body}.{n}" for n, _ in getattr(backbone.model, body).named_parameters()
    }
    changed = reference.loaded(backbone.model, tensors)
    for row, hidden in enumerate(reference.last_hidden(changed, batch)):
        feature = hidden[-1 if family == "gpt2" else 0]
        torch.testing.assert_close(got[row], weight @ feature + bias, **CLOSE)


def test_mlp_is_two_layers_on_the_models_feature(family, backbone, batch, label_ids):
    batch = read_as_text(batch, family)
    with moved(FeatureHead(head="mlp"), backbone, label_ids) as attached:
        tensors = copied(attached)
        got = logits_of(attached, batch).detach()
        assert attached.new_head
    for row, hidden in enumerate(reference.last_hidden(backbone.model, batch)):
        feature = hidden[-1 if family == "gpt2" else 0]
        inner = torch.tanh(tensors["dense.weight"] @ feature + tensors["dense.bias"])
        expected = tensors["out.weight"] @ inner + tensors["out.bias"]
        torch.testing.assert_close(got[row], expected, **CLOSE)


def test_bilstm_reads_every_row_to_its_own_end(family, backbone, batch, label_ids):
    batch = read_as_text(batch, family)
    with moved(FeatureHead(head="bilstm"), backbone, label_ids) as attached:
        tensors = copied(attached)
        got = logits_of(attached, batch).detach()
    lstm = torch.nn.LSTM(32, 32, bidirectional=True)
    lstm.load_state_dict({n[5:]: value for n, value in tensors.items() if n.startswith("lstm.")})
    for row, hidden in enumerate(reference.last_hidden(backbone.model, batch)):
        ends = reference.bilstm_states(lstm, hidden)
        expected = tensors["out.weight"] @ ends + tensors["out.bias"]
        torch.testing.assert_close(got[row], expected, **CLOSE)


@pytest.mark.parametrize("name", ALL)
def test_rows_may_come_in_any_part_and_padding(name, backbone, batch, label_ids):
    with moved(ALL[name], backbone, label_ids, by=0.05) as attached:
        read = attached.reader(batch)
        together = read(torch.arange(8)).detach()
        for rows in ([3], [6, 1], [7, 0, 2]):
            got = read(torch.tensor(rows)).detach()
            torch.testing.assert_close(got, together[rows], **CLOSE)


def test_answer_may_be_read_at_padding(label_ids):
    """As the released readout does with a causal model: the prompts' shift goes along."""
    backbone = Backbone(tiny_model("gpt2", vocab_size=1100))
    batch = random_batch([9, 4, 6], [8, 8, 8])
    with moved(BitFit(), backbone, label_ids) as attached:
        changed = reference.loaded(backbone.model, copied(attached))
        got = logits_of(attached, batch).detach()
    torch.testing.assert_close(got, answer_logits(changed, batch, label_ids), **CLOSE)


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_gets_a_gradient_and_the_model_none(name, backbone, batch, label_ids):
    with moved(ALL[name], backbone, label_ids, by=0.05) as attached:
        loss = functional.cross_entropy(logits_of(attached, batch), batch.labels)
        loss.backward()
        names = {name for name, value in attached.parameters.items() if value.grad is not None}
        assert all(value.dtype == torch.float32 for value in attached.parameters.values())
    unused = {name for name in attached.parameters if "token_type" in name or "pooler" in name}
    assert names >= set(attached.parameters) - unused
    assert all(value.grad is None for value in backbone.model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_model_is_as_it_was_even_after_an_error(name, backbone, batch, label_ids):
    before, drawn = state(backbone), torch.random.get_rng_state()

    def go_wrong():
        with moved(ALL[name], backbone, label_ids) as attached:
            logits_of(attached, batch).sum().backward()
            raise RuntimeError("something went wrong")

    with pytest.raises(RuntimeError, match="something went wrong"):
        go_wrong()
    after = state(backbone)
    values, others = before.pop("values"), after.pop("values")
    assert before == after
    assert all(torch.equal(values[name], others[name]) for name in values)
    assert torch.equal(drawn, torch.random.get_rng_state())


def test_copies_are_taken_off_when_a_pass_fails(backbone, batch, label_ids, monkeypatch):
    with ModelTuning().attached(backbone, label_ids, 0) as attached:
        before = state(backbone)["values"]
        with torch.no_grad():
            for value in attached.parameters.values():
                value += 1
        monkeypatch.setattr(backbone, "forward", lambda **_inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logits_of(attached, batch)
        after = state(backbone)["values"]
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ALL)
def test_start_depends_on_the_seed_alone(name, backbone, label_ids):
    def start(seed):
        torch.rand(3)  # whatever was drawn before
        with ALL[name].attached(backbone, label_ids, seed) as attached:
            return copied(attached)

    first, again, other = start(1), start(1), start(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = any(not torch.equal(first[name], other[name]) for name in first)
    random = name not in ("model_tuning", "bitfit", "bitfit_of_ffn", "prompt_tuning")
    assert changed == random


@pytest.mark.parametrize("name", ALL)
def test_half_precision_models_train_float32_parameters(name, family, batch, label_ids):
    """Near the float32 model's logits, and with gradients of the parameters' type."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        backbone = Backbone(tiny_model(family, vocab_size=1100, initializer_range=0.1).to(dtype))
        with moved(ALL[name], backbone, label_ids, by=0.02) as attached:
            logits = logits_of(attached, batch)
            functional.cross_entropy(logits, batch.labels).backward()
            found.append(logits.detach())
            for value in attached.parameters.values():
                assert value.dtype == torch.float32
                assert value.grad is None or torch.isfinite(value.grad).all()
    assert found[1].dtype == torch.float32
    assert (found[0] - found[1]).abs().max() < 0.15 * found[0].std() + 0.05


def test_label_words_are_no_numbers_of_the_classes(backbone, batch):
    """Head rows are those of the ids given, in their order."""
    ids = torch.tensor([30, 4])
    with BitFit().attached(backbone, ids, 0) as attached:
        got = logits_of(attached, batch).detach()
    torch.testing.assert_close(got, answer_logits(backbone.model, batch, ids), **CLOSE)
    assert np.ptp(got.numpy()) > 0.1
