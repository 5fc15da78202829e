"""The pretraining recipe on a far smaller model: it learns, repeats exactly, and guesses fairly."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional

from dfolora.errors import UserError
from dfolora.mini import BUNDLED, news
from dfolora.mini.world import corpus
from dfolora.model.checkpoint import Checkpoint
from pipelines.pretrain.training import Pretraining, Recipe
from tests.commands import command
from tests.conftest import mini_tokenizer
from tests.emulation import emulated_cuda

KINDS = {"roberta": "masked", "gpt2": "causal"}
SIZES = {
    "roberta": {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 130, "pad_token_id": 1,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    },
    "gpt2": {
        "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128,
        "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0,
    },
}  # fmt: skip


@pytest.fixture(params=sorted(KINDS))
def family(request):
    return request.param


def training(family, **recipe):
    tokenizer = mini_tokenizer(KINDS[family])
    config = transformers.AutoConfig.for_model(family, vocab_size=len(tokenizer), **SIZES[family])
    options = {"documents": 3000, "batch_tokens": 1024, "held_out": 200}
    return Pretraining(config, tokenizer, Recipe(**options | recipe))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"documents": 0}, "recipe.documents=0 must be a whole number, 1 or more"),
        ({"seed": -1}, "recipe.seed=-1 must be a whole number, 0 or more"),
        ({"masked": 1}, "recipe.masked=1 must lie between 0 and 1"),
        ({"learning_rate": "x"}, "recipe.learning_rate=x must be a positive number"),
    ],
)
def test_wrong_recipes_are_told(value, message):
    with pytest.raises(UserError, match=message):
        Recipe(**{"documents": 10} | value).check()


@pytest.mark.slow
def test_command_writes_a_model_that_loads(tmp_path):
    small = ["recipe.documents=600", "recipe.held_out=50", "looks=2"]
    ended = command(tmp_path, "pretrain", *small, f"folder={tmp_path}/mini")
    assert ended.returncode == 0, ended.stderr
    checkpoint = Checkpoint(
        path=f"{tmp_path}/mini", revision="main", tokenizer=None, weights="pretrained",
        architecture=None, device="cpu", precision="fp32",
    )  # fmt: skip
    backbone = checkpoint.load_backbone()
    assert len(checkpoint.load_tokenizer()) == backbone.model.config.vocab_size
    log = json.loads((tmp_path / "mini" / "pretraining.json").read_text())
    assert len(log["losses"]) == 2
    assert log["losses"][-1]["step"] == log["steps"]
    stored = load_file(tmp_path / "mini" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_are_small_and_say_how_they_were_made(name):
    folder = BUNDLED[name]
    assert (folder / "model.safetensors").stat().st_size < 4e6
    log = json.loads((folder / "pretraining.json").read_text())
    assert log["losses"][-1]["held_out"] < log["losses"][0]["held_out"]
    assert Recipe(**log["recipe"]) == Recipe(documents=900_000)  # as conf/pretrain.yaml has it


def unigram_entropy(family) -> float:
    """What a model that knows how common tokens are, and nothing else, cannot get below."""
    ids = mini_tokenizer(KINDS[family])(corpus(3000))["input_ids"]
    shares = np.bincount(np.concatenate(ids)) / sum(map(len, ids))
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


@pytest.mark.slow
def test_a_far_smaller_model_learns_more_than_how_common_words_are(family):
    small = training(family, documents=20_000)
    losses = list(small)
    assert len(losses) == small.steps
    assert np.mean(losses[:5]) > unigram_entropy(family) - 0.5
    assert small.held_out_loss() < unigram_entropy(family) - 1.0


def test_the_same_recipe_gives_the_same_weights(family):
    first, again = (training(family, documents=600) for _ in range(2))
    state = torch.random.get_rng_state()
    assert list(first) == list(again)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert list(training(family, documents=600, seed=1)) != list(training(family, documents=600))


def test_seed_touches_no_generator_of_a_gpu(family):
    with emulated_cuda():  # which raises
        assert len(list(training(family, documents=50, held_out=20))) > 0


def test_held_out_loss_is_the_same_when_asked_again(family):
    small = training(family)
    assert small.held_out_loss() == small.held_out_loss()


def test_causal_loss_is_that_of_transformers():
    small = training("gpt2")
    batch = torch.from_numpy(small._batches[0])
    labels = batch.masked_fill(batch < 0, -100)
    with torch.inference_mode():
        expected = small.model(
            input_ids=batch.clamp(min=0), attention_mask=(batch >= 0).long(), labels=labels
        ).loss
        got = small._loss(small._batches[0], np.random.default_rng(0))
    assert float(got) == pytest.approx(float(expected), abs=0.02)  # bf16


def test_masked_model_guesses_the_share_it_should_and_no_special_token():
    small = training("roberta", masked=0.3)
    tokenizer = mini_tokenizer("masked")
    ids = torch.from_numpy(np.concatenate([b.ravel() for b in small._batches])[None])
    real = ids >= 0
    ids = ids.clamp(min=0)
    shown, guessed = small._hide(ids, real, np.random.default_rng(0))
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert not (guessed & (special | ~real)).any()
    assert torch.equal(shown[~guessed], ids[~guessed])
    assert float(guessed.sum() / (real & ~special).sum()) == pytest.approx(0.3, abs=0.01)
    hidden = shown[guessed] == tokenizer.mask_token_id
    assert float(hidden.float().mean()) == pytest.approx(0.8, abs=0.02)
    kept = (shown == ids)[guessed].float().mean()
    assert float(kept) == pytest.approx(0.1, abs=0.02)


def test_start_knows_how_common_words_are_and_which_go_together():
    small = training("roberta")
    tokenizer = mini_tokenizer("masked")
    bias = small.model.lm_head.bias.detach()
    ids = np.concatenate([b[b >= 0] for b in small._batches])
    expected = np.log((np.bincount(ids, minlength=len(bias)) + 1.0) / (len(ids) + len(bias)))
    np.testing.assert_allclose(bias.numpy(), expected, rtol=1e-5)

    def vectors(words):
        numbers = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
        whole = [number for number, *rest in numbers if not rest]
        return functional.normalize(small.model.get_input_embeddings().weight[whole].detach())

    topics = [vectors((*news.AGENTS[topic], *news.MATTERS[topic])) for topic in range(4)]
    alike = torch.tensor([[float((a @ b.T).mean()) for a in topics] for b in topics])
    within = alike.diagonal().clone()
    assert (within > alike.fill_diagonal_(-1).max(0).values + 0.1).all()
