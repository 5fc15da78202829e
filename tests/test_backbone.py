"""The backbone: the answer's logits without the vocabulary head, and what it knows of models."""

import pytest
import torch
import transformers

from dfolora.architecture import Architecture
from dfolora.backbone import Backbone
from dfolora.errors import UserError
from tests.conftest import tiny_model
from tests.reference.one_candidate import answer_logits


def test_answer_logits_are_the_full_models(backbone, batch, label_ids):
    ours = backbone.answer_logits(batch.input_ids, batch.attention_mask, batch.answer, label_ids)
    full = answer_logits(backbone.model, batch, label_ids)
    torch.testing.assert_close(ours, full, rtol=0, atol=1e-5)  # float32, other summation order
    assert full.std() > 0.1


def test_vocabulary_head_never_runs(backbone, batch, label_ids, monkeypatch):
    decoder = backbone.model.get_submodule(backbone.architecture.family.decoder)

    def refuse(*_arguments):
        raise AssertionError("the vocabulary head ran")

    monkeypatch.setattr(decoder, "forward", refuse)
    backbone.answer_logits(batch.input_ids, batch.attention_mask, batch.answer, label_ids)
    with pytest.raises(AssertionError, match="vocabulary head ran"):
        backbone.model(input_ids=batch.input_ids)


def test_layer_inputs_are_the_hidden_states(backbone, batch):
    seen = {}
    backbone.visit_layer_inputs(batch.input_ids, batch.attention_mask, seen.__setitem__)
    states = backbone.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
    ).hidden_states
    assert sorted(seen) == [0, 1, 2]
    for layer, hidden in seen.items():
        assert torch.equal(hidden, states[layer])


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


def test_unknown_model_type_names_the_known_ones():
    config = transformers.AutoConfig.for_model("llama")
    with pytest.raises(UserError, match="'llama'; supported are roberta, bert, gpt2"):
        Architecture.of(config)


@pytest.mark.parametrize("targets", [["q", "x"], [], ["q", "q"], ["Q"]])
def test_unknown_or_repeated_maps_are_refused(backbone, targets):
    with pytest.raises(UserError, match="choose a non-empty subset of q, k, v, o"):
        backbone.architecture.check_targets(targets)
