"""The backbone: its layers and its head on packed sequences, and what it knows of models."""

import pytest
import torch
import transformers

from dfolora.errors import UserError
from dfolora.model.architecture import Architecture
from dfolora.model.backbone import Backbone
from dfolora.model.packing import Sequences
from dfolora.model.quantize import quantize_layers
from tests.conftest import tiny_model
from tests.reference.one_candidate import answer_logits

CLOSE = {"rtol": 0, "atol": 1e-5}  # float32, other summation order


def pack_of(batch, *, coarse=False):
    """All real tokens in one pack."""
    lengths = batch.attention_mask.sum(-1)
    sequences = Sequences(
        input_ids=batch.input_ids, lengths=lengths, real=lengths, answer=batch.answer
    )
    (pack,) = sequences.packs(10_000, torch.device("cpu"), coarse=coarse)
    return pack


@pytest.fixture
def states(backbone, batch):
    """What enters each layer at the real tokens, and the last layer's output, as in a pack."""
    seen = []
    layers = backbone.model.get_submodule(backbone.architecture.family.layers)
    handles = [
        layer.register_forward_hook(lambda _module, args, out: seen.append((args[0], out)))
        for layer in layers
    ]
    backbone.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for handle in handles:
        handle.remove()
    order, real = pack_of(batch).rows, batch.attention_mask.bool()
    last = seen[-1][1]
    full = [entered for entered, _ in seen] + [last if torch.is_tensor(last) else last[0]]
    return [torch.cat([hidden[row][real[row]] for row in order]) for hidden in full]


@pytest.mark.parametrize("coarse", [False, True])
def test_embeddings_and_layers_are_the_models_own(backbone, batch, states, coarse):
    pack = pack_of(batch, coarse=coarse)
    hidden, packed = backbone.embed(pack)
    torch.testing.assert_close(hidden[0], states[0], **CLOSE)
    assert len(backbone.layers) == 3
    for layer, entering, leaving in zip(backbone.layers, states, states[1:], strict=False):
        torch.testing.assert_close(layer(entering[None], packed)[0], leaving, **CLOSE)
    assert states[-1].std() > 0.1


@pytest.mark.parametrize("coarse", [False, True])
def test_answers_alone_are_some_of_all(backbone, batch, states, coarse):
    """Of a causal layer, what follows the answer is no part of the pack."""
    if backbone.architecture.family.kind == "causal":
        batch.answer[:] = batch.attention_mask.sum(-1) - 1
    pack = pack_of(batch, coarse=coarse)
    _, packed = backbone.embed(pack)
    for layer, entering in zip(backbone.layers, states, strict=False):
        got = layer(entering[None], packed, answers_only=True)
        torch.testing.assert_close(got, layer(entering[None], packed)[:, pack.answers], **CLOSE)


@pytest.mark.parametrize("coarse", [False, True])
def test_layers_keep_candidates_apart(backbone, batch, states, coarse):
    """Of different inputs: candidate by candidate."""
    _, packed = backbone.embed(pack_of(batch, coarse=coarse))
    inputs = torch.stack(states[:3])
    for layer in backbone.layers:
        together = layer(inputs, packed)
        for given, got in zip(inputs, together, strict=True):
            torch.testing.assert_close(got, layer(given[None], packed)[0], **CLOSE)
    assert torch.equal(inputs, torch.stack(states[:3]))


def test_label_logits_are_the_full_models(backbone, batch, states, label_ids):
    pack = pack_of(batch)
    got = backbone.label_logits(states[-1][pack.answers], label_ids)
    expected = answer_logits(backbone.model, batch, label_ids)[pack.rows]
    torch.testing.assert_close(got, expected, **CLOSE)
    assert expected.std() > 0.1


def test_vocabulary_logits_hold_the_label_words(backbone, batch, states, label_ids):
    """And the rest of one row of weights a token."""
    hidden = states[-1][pack_of(batch).answers]
    got = backbone.vocabulary_logits(hidden)
    assert got.shape == (len(batch.labels), 120)
    some = backbone.label_logits(hidden, label_ids)
    torch.testing.assert_close(got[:, label_ids], some, rtol=0, atol=1e-6)  # other matrix sizes


def test_vocabulary_of_a_half_precision_model_is_read_in_parts(family, batch, monkeypatch):
    backbone = Backbone(tiny_model(family).bfloat16())
    hidden, _ = backbone.embed(pack_of(batch))
    whole = backbone.vocabulary_logits(hidden)
    monkeypatch.setattr("dfolora.model.backbone.ROWS_AT_ONCE", 50)
    largest = []
    linear = torch.nn.functional.linear

    def watched(rows, weight, bias=None):
        if rows.dtype == torch.float32:
            largest.append(len(weight))
        return linear(rows, weight, bias)

    monkeypatch.setattr("dfolora.model.backbone.functional.linear", watched)
    torch.testing.assert_close(backbone.vocabulary_logits(hidden), whole, rtol=0, atol=1e-5)
    assert largest == [50, 50, 20]


def test_forward_and_answer_logits_are_the_full_models_and_pass_gradients(
    backbone, batch, label_ids
):
    hidden = backbone.forward(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    answers = hidden[torch.arange(len(batch.answer)), batch.answer].requires_grad_()
    got = backbone.answer_logits(answers, label_ids)
    expected = answer_logits(backbone.model, batch, label_ids)
    torch.testing.assert_close(got.detach(), expected, **CLOSE)
    (gradient,) = torch.autograd.grad(got.sum(), answers)
    assert gradient.abs().max() > 0


def test_weights_in_8_bits_are_seen(family):
    pytest.importorskip("torchao")
    model = tiny_model(family)
    assert not Backbone(model).architecture.quantized
    quantize_layers(model)
    assert Backbone(model).architecture.quantized


def test_label_logits_are_float32_beside_a_half_precision_model(family, batch, label_ids):
    backbone = Backbone(tiny_model(family).bfloat16())
    assert backbone.dtype == torch.bfloat16
    hidden, _ = backbone.embed(pack_of(batch))
    assert hidden.dtype == torch.bfloat16
    assert backbone.label_logits(hidden, label_ids).dtype == torch.float32


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_activations_that_are_not_fused_are_the_models_own(family, batch, label_ids, activation):
    name = "activation_function" if family == "gpt2" else "hidden_act"
    backbone = Backbone(tiny_model(family, **{name: activation}))
    pack = pack_of(batch)
    hidden, packed = backbone.embed(pack)
    for layer in backbone.layers:
        hidden = layer(hidden, packed)
    got = backbone.label_logits(hidden[0, pack.answers], label_ids)
    expected = answer_logits(backbone.model, batch, label_ids)[pack.rows]
    torch.testing.assert_close(got, expected, **CLOSE)


def test_backbone_freezes_the_model_in_evaluation_mode():
    model = tiny_model("roberta").train()
    Backbone(model)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("name", "length"), [("roberta", 64), ("bert", 64), ("gpt2", 64)])
def test_longest_input_is_what_the_model_can_embed(name, length):
    backbone = Backbone(tiny_model(name))
    assert backbone.architecture.max_length == length
    ids = torch.full((1, length), 9)
    backbone.model(input_ids=ids)
    with pytest.raises((IndexError, RuntimeError), match=r"index|size"):
        backbone.model(input_ids=torch.full((1, length + 1), 9))


def test_sizes_are_the_configurations(family):
    architecture = Backbone(tiny_model(family)).architecture
    ffn = 128 if family == "gpt2" else 64  # GPT-2 names none: four times the width
    assert (architecture.layers, architecture.width, architecture.heads) == (3, 32, 4)
    assert architecture.ffn_width == ffn


def test_unknown_model_type_names_the_known_ones():
    config = transformers.AutoConfig.for_model("mamba")
    with pytest.raises(UserError, match=r"'mamba'; supported are bert, roberta, .*FAMILIES"):
        Architecture.of(config)


@pytest.mark.parametrize("targets", [["q", "x"], [], ["q", "q"], ["Q"]])
def test_unknown_or_repeated_maps_are_refused(backbone, targets):
    with pytest.raises(UserError, match="choose a non-empty subset of q, k, v, o"):
        backbone.architecture.check_targets(targets)


def test_model_on_a_device_without_float64_is_refused(monkeypatch):
    model = tiny_model("roberta")
    monkeypatch.setattr(type(model), "device", torch.device("mps"))
    with pytest.raises(UserError, match=r"on mps; dfolora runs on cpu or cuda\. Move it with"):
        Backbone(model)
