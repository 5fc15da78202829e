"""Search vectors to soft prompts, and the searches over them: BBT and BBTv2."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dfolora.data import Encoder, Rows
from dfolora.data.task import Prompt
from dfolora.engine.forward import Engine
from dfolora.errors import UserError
from dfolora.methods import FewShotData, LayerwiseSearch
from dfolora.model.backbone import Backbone
from dfolora.model.intervention import SoftPrompt
from dfolora.search.subspace import PromptSubspaceSpec
from dfolora.search.subspace.prompt import load_soft_prompts
from dfolora.search.subspace.statistics import layer_stds
from tests.conftest import mini_tokenizer, random_batch, tiny_model

DIM, POSITIONS = 24, 3
LENGTHS = [19, 5, 11, 7, 19, 5, 13, 6]


def spec(**options):
    return PromptSubspaceSpec(**{"dim": DIM, "positions": POSITIONS, "alpha": 2.0} | options)


def last_answers(seed=1):
    """Every token is needed, of causal models too."""
    return random_batch(LENGTHS, [length - 1 for length in LENGTHS], seed=seed)


def built(backbone, batch, seed=0, **options):
    return spec(**options).build(backbone, batch.input_ids, batch.attention_mask, seed)


def test_blocks_are_layers_or_the_input_alone(backbone):
    batch = last_answers()
    assert built(backbone, batch).blocks == 3
    assert built(backbone, batch, every_layer=False).blocks == 1
    assert built(backbone, batch).stored == 3 * POSITIONS * 32
    assert spec().blocks(backbone.architecture) == 3
    assert spec(every_layer=False).blocks(backbone.architecture) == 1


def test_vectors_lie_after_a_masked_models_first_token(backbone, family):
    prompt = built(backbone, last_answers()).intervention(1, np.ones((2, DIM)))
    assert isinstance(prompt, SoftPrompt)
    assert (prompt.layer, prompt.start) == (1, 0 if family == "gpt2" else 1)
    assert prompt.vectors.shape == (2, POSITIONS, 32)


def test_map_is_linear_and_zero_is_the_base_model(backbone):
    subspace = built(backbone, last_answers())
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 1, DIM))
    vectors = {
        name: subspace.intervention(0, z).vectors
        for name, z in {"a": first, "b": second, "sum": 3 * first + second}.items()
    }
    torch.testing.assert_close(vectors["sum"], 3 * vectors["a"] + vectors["b"])
    assert not subspace.incumbents(np.zeros((3, DIM)))
    assert list(subspace.incumbents(np.ones((3, DIM)), without=[1])) == [0, 2]


def test_scale_is_the_hidden_states_over_root_d(backbone):
    """Entries of p = z A have the std alpha std_l |z| / sqrt(d)."""
    batch = last_answers()
    stds = list(layer_stds(backbone, batch.input_ids, batch.attention_mask, "real_tokens"))
    options = {"dim": 400, "positions": 50, "alpha": 0.5}
    subspace = built(backbone, batch, **options)
    for layer, std in enumerate(stds):
        vectors = subspace.intervention(layer, np.ones((1, 400))).vectors
        assert vectors.std().item() == pytest.approx(0.5 * std, rel=0.06)  # 1600 draws


def test_maps_differ_by_layer_and_seed_and_repeat(backbone):
    batch, z = last_answers(), np.ones((1, DIM))

    def vectors(seed, layer):
        return built(backbone, batch, seed).intervention(layer, z).vectors

    assert torch.equal(vectors(0, 1), vectors(0, 1))
    assert not torch.allclose(vectors(0, 1), vectors(1, 1))
    corr = np.corrcoef(vectors(0, 1).flatten(), vectors(0, 2).flatten())[0, 1]
    assert abs(corr) < 0.5


def test_search_learns_selects_on_dev_and_saves_its_prompts(backbone, label_ids, tmp_path):
    train, dev = last_answers(), last_answers(seed=5)
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    method = LayerwiseSearch(subspace=spec(), budget=200, dev_interval=20)
    data = FewShotData(train=train, dev=dev, label_ids=label_ids, metric="accuracy")
    fit = method.begin(backbone, data, 0)
    history = list(fit)
    predictor = fit.predictor()
    assert history[-1].step.loss < history[0].step.loss - 0.05
    assert history[-1].step.calls == 200
    looks = [look for each in history for look in each.looks]
    assert predictor.dev == min(looks, key=lambda look: (-look.score, look.loss))
    assert predictor.searched == 3 * DIM
    assert predictor.stored == 3 * POSITIONS * 32
    predictor.save(tmp_path)
    saved = load_file(tmp_path / "soft_prompts.safetensors")
    start = 0 if backbone.architecture.family.kind == "causal" else 1
    changes = {
        layer: SoftPrompt(layer=layer, start=start, vectors=saved[f"layer.{layer}"][None])
        for layer in range(3)
    }
    reloaded = Engine(backbone, train, label_ids)(changes)[0]
    torch.testing.assert_close(predictor.logits(train), reloaded, rtol=0, atol=1e-5)
    after = backbone.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_filler_words_stand_before_the_prompt(kind):
    mask = " {mask} ." if kind == "masked" else ""
    prompt = Prompt(kind=kind, pattern="{text} It was" + mask, label_words=("bad", "great"))
    plain = Encoder(prompt=prompt, tokenizer=mini_tokenizer(kind), max_length=60)
    encoder = spec(positions=10).encoder(plain)
    rows = Rows(texts=({"text": "so"}, {"text": "and so on"}), labels=(0, 1))
    words = plain.tokenizer.decode(list(range(1000, 1010)))
    batch = encoder(rows)
    for ids, text in zip(batch.input_ids, ("so", "and so on"), strict=True):
        spelled = plain.tokenizer.decode(ids, skip_special_tokens=True)
        assert str(spelled).startswith(f"{words} . {text} It was")
    assert (plain.prompt.pattern, plain.fillers) == (prompt.pattern, 50)  # the plain one stays


def test_prompt_that_has_filler_words_keeps_them():
    prompt = Prompt(kind="causal", pattern="{filler} {text} is", label_words=("a", "b"))
    assert prompt.prefixed() == prompt
    other = Prompt(kind="causal", pattern="{text} is", label_words=("a",), prefix="{filler} ")
    assert other.prefixed().pattern == "{filler} {text} is"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": 0}, "prompt_tokens=0 must be a whole number, 1 or more"),
        ({"positions": 64}, r"64 prompt vectors leave no room in a model of at most 64 tokens"),
        ({"dim": 0}, "subspace.dim=0 must be"),
        ({"alpha": 0}, "subspace.alpha=0 must be a positive number"),
        ({"alpha": float("inf")}, "subspace.alpha=inf must be a positive number"),
        ({"every_layer": 1}, "subspace.every_layer must be true or false, got 1"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        spec(**options).check(Backbone(tiny_model("bert")).architecture)


def test_vocabulary_without_so_many_filler_words_is_refused():
    prompt = Prompt(kind="causal", pattern="{text} is", label_words=("a", "b"))
    plain = Encoder(prompt=prompt, tokenizer=mini_tokenizer("causal"), max_length=60)
    with pytest.raises(UserError, match=r"A filler of 1000 words needs the vocabulary ids 1000 to"):
        spec(positions=1000).encoder(plain)


@pytest.mark.parametrize(("name", "begun"), [("llama", True), ("llama", False), ("gpt2", False)])
def test_vectors_come_after_the_token_that_begins_a_causal_sequence(name, begun, tmp_path):
    """Where there is one, also when they are read from their file."""
    backbone, batch = Backbone(tiny_model(name)), last_answers()
    if begun:
        batch.input_ids[:, 0] = backbone.model.config.bos_token_id
    subspace = built(backbone, batch)
    solution = np.ones((subspace.blocks, DIM))
    subspace.save(tmp_path, backbone, solution)
    starts = {prompt.start for prompt in load_soft_prompts(tmp_path, backbone).values()}
    assert starts == {subspace.intervention(0, solution[:1]).start} == {int(begun)}
