"""Every family runs on packed sequences as transformers' own padded forward runs it."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dfolora.engine.forward import Engine
from dfolora.errors import UserError
from dfolora.methods.gradient import (
    Adapter,
    BitFit,
    Lora,
    ModelTuning,
    PrefixTuning,
    PromptTuning,
)
from dfolora.methods.gradient.trainable import Trainable
from dfolora.model import save_adapter
from dfolora.model.architecture import Architecture
from dfolora.model.backbone import Backbone
from dfolora.model.families import FAMILIES, UNSUPPORTED
from dfolora.model.quantize import quantize_layers
from tests.conftest import SIZES, random_batch, tiny_model
from tests.families import CONFIGS
from tests.model.test_backbone import pack_of
from tests.model.test_checkpoint import checkpoint
from tests.reference import one_candidate
from tests.searching import SUBSETS, evaluator_of, some_solution, subspace_of

LABELS = torch.tensor([7, 50, 99])
TRAINED: dict[str, Trainable] = {
    "whole": ModelTuning(),
    "classifier": ModelTuning(head="classifier"),
    "adapter": Adapter(bottleneck=5),
    "bitfit": BitFit(),
    "lora": Lora(rank=2, targets=("q", "k", "v", "o")),
    "prompt": PromptTuning(tokens=3),
    "prefix": PrefixTuning(tokens=3),
}
LENGTHS, ANSWERS = [3, 64, 3, 40, 19, 17, 4, 64, 3], [0, 63, 2, 20, 18, 9, 0, 31, 1]
CLOSE = {"rtol": 0, "atol": 1e-5}  # float32, other summation order


@pytest.fixture(params=[*SIZES, *CONFIGS])
def name(request):
    return request.param


def test_every_family_is_here():
    assert {*SIZES, *(config["model_type"] for config in CONFIGS.values())} == set(FAMILIES)
    assert not set(UNSUPPORTED) & set(FAMILIES)


@pytest.mark.usefixtures("grouping")
def test_losses_and_ranks_are_those_of_merged_weights(name):
    """All sets of maps, over all layers, populations, and lengths up to the limit."""
    backbone, batch = Backbone(tiny_model(name)), random_batch(LENGTHS, ANSWERS)
    for targets, block, size in zip(SUBSETS, cycle([0, 1, 2]), cycle([1, 2, 7, 2]), strict=False):
        evaluator, subspace = evaluator_of(backbone, batch, LABELS, targets=tuple(targets))
        solution, population = some_solution(size)
        got = evaluator(solution, block, population).losses
        expected = one_candidate.losses(
            backbone, subspace, batch, LABELS, solution, block, population
        )
        np.testing.assert_allclose(got, expected, **CLOSE)
        assert list(np.argsort(got)) == list(np.argsort(expected))
        assert np.ptp(expected) > 3e-5 or size == 1  # the candidates do differ


def test_logits_of_the_whole_vocabulary_are_the_models_own(name):
    """At several places of a row, with whatever the head does to logits."""
    backbone, batch = Backbone(tiny_model(name)), random_batch(LENGTHS, ANSWERS)
    places = torch.stack([batch.answer, batch.answer // 2], dim=1)
    got = Engine(backbone, batch, LABELS).vocabulary(places)
    model = backbone.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    expected = model.logits[torch.arange(len(places))[:, None], places]
    torch.testing.assert_close(got, expected, **CLOSE)
    assert expected.std() > 0.01


def test_padding_on_the_left_changes_nothing(name):
    """In transformers' own forward, for models that number positions by the mask or are told."""
    backbone, lengths = Backbone(tiny_model(name)), [3, 17, 40]
    if backbone.architecture.family.kind == "masked":
        pytest.skip("masked models are padded on the right")
    batch = random_batch(lengths, [length - 1 for length in lengths])
    rows = [row[:length] for row, length in zip(batch.input_ids, lengths, strict=True)]
    ids, mask = torch.ones_like(batch.input_ids), torch.zeros_like(batch.input_ids)
    for row, (given, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[row, -length:], mask[row, -length:] = given, 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        model = backbone.model(input_ids=ids, attention_mask=mask, position_ids=positions)
    got = Engine(backbone, batch, LABELS)({})[0]
    torch.testing.assert_close(got, model.logits[:, -1, LABELS], **CLOSE)


def test_peft_gives_the_engines_logits_and_so_do_merged_weights(name, tmp_path):
    backbone, batch = Backbone(tiny_model(name)), random_batch(LENGTHS, ANSWERS)
    subspace = subspace_of(backbone, batch, targets=("q", "k", "v", "o"))
    incumbents = subspace.incumbents(some_solution()[0])
    save_adapter(tmp_path, backbone, incumbents.values())
    adapted = PeftModel.from_pretrained(tiny_model(name), str(tmp_path)).eval()
    expected = Engine(backbone, batch, LABELS)(incumbents)[0]
    got = one_candidate.answer_logits(adapted, batch, LABELS)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)  # logits up to 10
    base = one_candidate.answer_logits(tiny_model(name), batch, LABELS)
    assert (expected - base).abs().max() > 1e-3
    merged = adapted.merge_and_unload()
    assert merged.state_dict().keys() == tiny_model(name).state_dict().keys()  # a plain model
    got = one_candidate.answer_logits(merged, batch, LABELS)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_weights_in_8_bits_run(name):
    """As the model's own forward has them, which torchao's rounded weights run too."""
    pytest.importorskip("torchao")
    model = tiny_model(name)
    quantize_layers(model)
    batch = random_batch(LENGTHS, ANSWERS)
    got = Engine(Backbone(model), batch, LABELS)({})[0]
    torch.testing.assert_close(got, one_candidate.answer_logits(model, batch, LABELS), **CLOSE)


def test_sizes_are_those_of_the_weights(name):
    """Of every map, of the FFN as a whole, and of the longest input."""
    backbone = Backbone(tiny_model(name))
    architecture = backbone.architecture
    for layer in backbone.layers:
        for map_name, linear in layer.maps.items():
            place = architecture.maps[map_name]
            shape = sorted(linear.module.weight.shape)
            assert shape == sorted((place.d_in, place.d_module))
            assert len(torch.arange(place.d_module)[place.columns]) == place.d_out
    family = architecture.family
    inside = backbone.model.get_submodule(f"{family.layers}.1")
    maps = {linear.module for linear in backbone.layers[1].maps.values()}
    sizes = {
        part: value.numel()
        for part in inside.modules()
        for value in part.parameters(recurse=False)
        if value.ndim == 2
    }
    assert sum(sizes[part] for part in maps) == architecture.map_numbers
    assert sum(sizes[part] for part in sizes.keys() - maps) == architecture.ffn_numbers
    assert architecture.max_length == 64


@contextmanager
def checked(part, backbone):
    part.check(backbone.architecture)
    with part.attached(backbone, LABELS, 0) as attached:
        yield attached


@pytest.mark.parametrize("trained", TRAINED)
def test_trained_parts_start_as_the_model_and_leave_it_so(name, trained):
    """Or are refused; with a gradient for some of their parameters."""
    backbone, batch = Backbone(tiny_model(name, vocab_size=1100)), random_batch([19, 4], [6, 3])
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    part, layers = TRAINED[trained], backbone.architecture.family.layers
    lacking = {
        "bitfit": not any(key.startswith(layers) and key.endswith("bias") for key in before),
        "prefix": not backbone.architecture.family.caches,
    }
    if lacking.get(trained):
        refusals = r"has a bias in this model|takes no keys and values"
        with pytest.raises(UserError, match=refusals), checked(part, backbone):
            pass
        return
    with checked(part, backbone) as attached:
        got = attached.reader(batch)(torch.arange(2))
        got.sum().backward()
        slopes = [value.grad for value in attached.parameters.values()]
    assert any(slope is not None and slope.abs().max() > 0 for slope in slopes)
    after = backbone.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    if trained == "prompt":  # starts as a row of filler words
        fillers = torch.arange(1000, 1003).expand(2, 3)
        batch = replace(
            batch,
            input_ids=torch.cat([fillers, batch.input_ids], dim=1),
            attention_mask=functional.pad(batch.attention_mask, (3, 0), value=1),
            answer=batch.answer + 3,
        )
    if trained not in ("prefix", "classifier"):  # which have no such start
        expected = one_candidate.answer_logits(backbone.model, batch, LABELS)
        torch.testing.assert_close(got.detach(), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("kind", ["gpt2", "phi3", "gpt_neox", "modernbert"])
def test_columns_of_a_fused_module_are_what_attention_is_given(kind, monkeypatch):
    """At the first position, where rotation changes nothing."""
    given, outputs = [], []

    def attend(module, query, key, value, mask, **options):
        given.append([x.transpose(1, 2).flatten() for x in (query, key, value)])
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    transformers.AttentionInterface.register("spied", attend)
    backbone = Backbone(tiny_model(kind))
    layer = backbone.layers[1]
    layer.maps["q"].module.register_forward_hook(lambda _module, _args, out: outputs.append(out))
    monkeypatch.setattr(backbone.model.config, "_attn_implementation", "spied")
    backbone.model(input_ids=torch.tensor([[9]]))
    for name, got in zip("qkv", given[1], strict=True):
        torch.testing.assert_close(got, outputs[0][0, 0, layer.maps[name].place.columns])


@pytest.mark.parametrize("what", ["position_bias", "s_aux"])
def test_attention_with_something_of_its_own_is_refused(what, batch):
    backbone = Backbone(tiny_model("llama"))
    hidden, packed = backbone.embed(pack_of(batch))
    odd = replace(packed, arguments=[{**given, what: hidden} for given in packed.arguments])
    with pytest.raises(UserError, match=f"has {what}, which packed attention lacks; take another"):
        backbone.layers[0](hidden, odd)


def test_folder_gives_the_same_model(name, tmp_path):
    """Loaded as a user's is, with an attention that its padded forward can have too."""
    tiny_model(name).save_pretrained(tmp_path)
    loaded = checkpoint(tmp_path).load_backbone()
    batch = random_batch(LENGTHS, ANSWERS)
    got = Engine(loaded, batch, LABELS)({})[0]
    expected = one_candidate.answer_logits(tiny_model(name), batch, LABELS)
    torch.testing.assert_close(got, expected, **CLOSE)
    with torch.no_grad():
        hidden = loaded.forward(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    answers = hidden[torch.arange(len(batch.answer)), batch.answer]
    torch.testing.assert_close(loaded.answer_logits(answers, LABELS), expected, **CLOSE)


def config_of(**values):
    return transformers.AutoConfig.for_model(**values)


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_what_cannot_be_exact_is_refused_with_the_reason(kind):
    with pytest.raises(UserError, match=f"{kind}.* cannot be run exactly: .*Supported are bert"):
        Architecture.of(config_of(model_type=kind))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_of(model_type="t5"), r"an encoder-decoder \(t5\); supported are masked and causal"),
        (
            config_of(model_type="vit"),
            r"of type 'vit'; supported are .* To add one, write",
        ),
        (
            config_of(model_type="llama", architectures=["LlamaForSequenceClassification"]),
            r"is a LlamaForSequenceClassification: it has no head .* Take the model that it was",
        ),
        (
            config_of(model_type="llama", num_attention_heads=8, num_key_value_heads=3),
            r"num_attention_heads=8 cannot share num_key_value_heads=3 evenly; correct",
        ),
        (
            config_of(model_type="bert", num_attention_heads=5),
            r"hidden_size=768 does not divide into num_attention_heads=5 equal parts; correct",
        ),
    ],
)
def test_what_is_no_such_model_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        Architecture.of(config)


@pytest.mark.parametrize("kind", ["phi3", "gpt_neox", "modernbert"])
def test_some_maps_of_a_fused_module_can_be_searched_but_not_trained(kind):
    architecture = Backbone(tiny_model(kind)).architecture
    architecture.check_targets(["q", "v"])
    with pytest.raises(UserError, match=r"keeps q, k, v in one module, .*; name k too, or none"):
        Lora(rank=2, targets=("q", "v")).check(architecture)
