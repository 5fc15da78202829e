"""What is trained: how much it is, how rows are put to it, and what is refused before weights."""

import copy
import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from hydra.utils import instantiate

from dfolora.data import Encoder, TextEncoder
from dfolora.data.task import Prompt
from dfolora.errors import UserError
from dfolora.methods.gradient import (
    Adapter,
    BitFit,
    FeatureHead,
    Lora,
    ModelTuning,
    PrefixTuning,
    PromptTuning,
)
from dfolora.model.architecture import Architecture
from dfolora.model.backbone import Backbone
from tests.conftest import LOADERS, mini_tokenizer, tiny_model
from tests.pipelines.test_conf import composed, options

COUNTS = {  # protocol: what the paper prints, 355M to 17M, to the unit
    "model_tuning": 355_412_057,
    "adapter": 2_409_600,
    "bitfit": 172_032,
    "lora": 786_432,
    "lora_equal_calls": 786_432,
    "hybrid": 786_432,  # trained or searched
    "prompt_tuning": 51_200,
    "p_tuning_v2": 1_228_800,
    "feature_mlp": 1_051_650,
    "feature_bilstm": 16_797_698,
}


@pytest.fixture(scope="module")
def roberta_large():
    """RoBERTa-large without a single weight."""
    config = instantiate(
        composed("model=roberta_large").model, weights="random", _convert_="all"
    ).config()
    with torch.device("meta"):
        return Backbone(LOADERS["roberta"].from_config(config))


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_the_paper_prints(name, roberta_large):
    method = instantiate(composed(f"method={name}", "profile=paper").method)
    method.check(roberta_large.architecture)
    two_classes = torch.empty(2, dtype=torch.long, device="meta")
    with method.trained.attached(roberta_large, two_classes, 0) as attached:
        assert sum(value.numel() for value in attached.parameters.values()) == COUNTS[name]


def test_every_trained_method_is_counted():
    nodes = {name: composed(f"method={name}").method for name in options("method")}
    assert set(COUNTS) == {name for name, node in nodes.items() if "trained" in node}


def plain(kind="masked", limit=60):
    pattern = "{text} is {mask} ." if kind == "masked" else "{text} is"
    prompt = Prompt(kind=kind, pattern=pattern, label_words=("good", "bad"))
    return Encoder(prompt=prompt, tokenizer=mini_tokenizer(kind), max_length=limit)


def test_rows_are_put_to_the_model_by_prompt_or_as_text():
    given = plain()
    for trainable in (ModelTuning(), BitFit(), Adapter(), Lora()):
        assert trainable.encoder(given) is given
    for trainable in (ModelTuning(head="classifier"), FeatureHead()):
        assert trainable.encoder(given) == TextEncoder.of(given)


@pytest.mark.parametrize("trainable", [PromptTuning(tokens=7), PrefixTuning(tokens=7)])
def test_trained_tokens_take_room_from_the_text(trainable):
    assert trainable.encoder(plain()) == plain(limit=53)
    with pytest.raises(UserError, match="7 trained tokens leave no room within the limit of 7"):
        trainable.encoder(plain(limit=7))


def architecture_of(family, **changes):
    return replace(Architecture.of(tiny_model(family).config), **changes)


REFUSED: dict[str, tuple[Any, str]] = {
    "an unknown layer": (
        Adapter(layers=[0, 3]),
        r"layers=\[0, 3\]; choose a non-empty subset of 0 to 2",
    ),
    "a negative layer": (
        Adapter(layers=[-1]),
        r"layers=\[-1\]; choose a non-empty subset of 0 to 2",
    ),
    "a layer twice": (Adapter(layers=[1, 1]), r"layers=\[1, 1\].*at most once"),
    "no layer": (Adapter(layers=[]), r"layers=\[\]; choose a non-empty subset of 0 to 2"),
    "no list of layers": (Adapter(layers=2), r"layers=2; choose a non-empty subset of 0 to 2"),
    "no whole layer": (
        Adapter(layers=[1.0]),
        r"layers=\[1.0\]; choose a non-empty subset of 0 to 2",
    ),
    "a truth for a layer": (Adapter(layers=[True]), r"layers=\[True\]; choose a non-empty subset"),
    "a list for a layer": (Adapter(layers=[[1]]), r"layers=\[\[1\]\]; choose a non-empty subset"),
    "an unknown place": (Adapter(after=["mlp"]), r"after=\['mlp'\].*attention, ffn"),
    "no place": (Adapter(after=[]), r"after=\[\]; choose a non-empty subset"),
    "no bottleneck": (Adapter(bottleneck=0), r"bottleneck=0 must be a whole number"),
    "an unknown bias": (BitFit(biases=["q", "x"]), r"biases=\['q', 'x'\].*ffn_norm"),
    "a bias twice": (BitFit(biases=["q", "q"]), r"biases=\['q', 'q'\].*at most once"),
    "biases that are no list": (BitFit(biases="q"), r"biases=q; choose a non-empty subset"),
    "a list for a bias": (BitFit(biases=[["q"]]), r"biases=\[\['q'\]\]; choose a non-empty subset"),
    "no maps": (Lora(targets=None), r"targets=None must be a list, such as \[q,k\]"),
    "maps in one word": (
        Lora(targets="qv"),
        r"targets=qv must be a list, such as \[q,k\]",
    ),
    "a list for a map": (Lora(targets=[["q"]]), r"targets=\[\['q'\]\]; choose a non-empty subset"),
    "an unknown map": (Lora(targets=["w"]), r"targets=\['w'\]; choose a non-empty subset"),
    "no rank": (Lora(rank=0), r"rank=0 must be a whole number, 1 or more"),
    "half an alpha": (Lora(alpha=0.5), r"alpha=0.5 must be a whole number"),
    "an unknown head": (
        ModelTuning(head="crf"),
        r"Unknown .*head=crf; choose one of label_words",
    ),
    "an unknown feature head": (
        FeatureHead(head="cnn"),
        r"Unknown .*head=cnn; .* mlp, bilstm",
    ),
    "a list for a head": (FeatureHead(head=["mlp"]), r"head=\['mlp'\]; .* mlp, bilstm"),
    "no prompt": (PromptTuning(tokens=0), r"tokens=0 must be a whole number, 1 or more"),
    "a prompt too long": (PromptTuning(tokens=64), r"64 trained tokens leave no room .* most 64"),
    "a prefix too long": (PrefixTuning(tokens=99), r"99 trained tokens leave no room .* most 64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_told(name, family):
    trainable, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        trainable.check(architecture_of(family))


def test_what_makes_sense_passes(family):
    for trainable in (Adapter(layers=[2, 0]), BitFit(), PromptTuning(), PrefixTuning()):
        trainable.check(architecture_of(family))
    Lora(targets=["v", "k", "q"]).check(architecture_of(family))


@pytest.mark.parametrize(
    ("trainable", "missing"),
    [(Lora(), "k"), (BitFit(biases=["q", "o"]), "k, v"), (Lora(targets=["k"]), "q, v")],
)
def test_part_of_a_fused_module_is_refused(trainable, missing):
    with pytest.raises(
        UserError, match=rf"keeps q, k, v in one module, attn.c_attn.*{missing} too"
    ):
        trainable.check(architecture_of("gpt2"))
    trainable.check(architecture_of("bert"))


def test_prefixes_need_attention_that_takes_caches():
    given = architecture_of("bert")
    closed = replace(given, family=replace(given.family, caches=False))
    with pytest.raises(UserError, match="takes no keys and values from outside"):
        PrefixTuning().check(closed)
    PromptTuning(tokens=5).check(closed)


@pytest.mark.parametrize("family", list(LOADERS))
def test_families_that_take_caches_say_so(family):
    model = tiny_model(family)
    given = Architecture.of(model.config).family
    taken = (
        "past_key_values" in inspect.signature(model.get_submodule(given.body).forward).parameters
    )
    assert given.caches == taken


def test_vocabulary_without_filler_words_is_told():
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(mini_tokenizer("causal").backend_tokenizer)
    )
    with pytest.raises(UserError, match="needs the vocabulary ids 1000 to 1899"):
        PromptTuning(tokens=900).encoder(replace(plain("causal", 1000), tokenizer=tokenizer))
