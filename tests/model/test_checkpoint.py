"""Models from folders, from random weights and from a hub that is not there."""

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from dfolora.data import Rows, Task, encode
from dfolora.data.task import label_word_ids
from dfolora.engine import classify
from dfolora.errors import UserError
from dfolora.model import checkpoint as checkpoint_module
from dfolora.model.checkpoint import Checkpoint
from tests.conftest import LOADERS, SIZES, mini_tokenizer, tiny_model
from tests.emulation import emulated_cuda
from tests.reference import one_candidate


def checkpoint(path, **options):
    defaults = {
        "revision": "main", "tokenizer": None, "weights": "pretrained",
        "architecture": None, "device": "cpu", "precision": "fp32",
    }  # fmt: skip
    return Checkpoint(path=str(path), **defaults | options)


@pytest.fixture
def folder(tmp_path):
    """A model with a tokenizer of its own size, as ``save_pretrained`` leaves them."""
    tokenizer = mini_tokenizer("masked")
    model = tiny_model("roberta")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_folder_gives_the_model_that_was_saved(folder):
    loaded = checkpoint(folder)
    assert loaded.load_tokenizer().mask_token == "<mask>"
    assert loaded.label == "model"
    backbone = loaded.load_backbone()
    saved = LOADERS["roberta"].from_pretrained(folder)
    for name, value in saved.state_dict().items():
        assert torch.equal(value, backbone.model.state_dict()[name]), name


def test_files_are_checked_once_however_often_the_model_is_asked_for(folder, monkeypatch):
    looked = []
    original = checkpoint_module.check_files
    monkeypatch.setattr(
        checkpoint_module, "check_files", lambda *given: looked.append(given) or original(*given)
    )
    loaded = checkpoint(folder)
    loaded.config()
    loaded.load_tokenizer()
    loaded.load_backbone()
    assert len(looked) == 1


def test_random_weights_have_the_right_shape_and_never_change(folder):
    architecture = {"model_type": "roberta", "vocab_size": 2000} | SIZES["roberta"]
    random = checkpoint(
        "nobody/model", weights="random", architecture=architecture, tokenizer=str(folder)
    )
    random.load_tokenizer()
    state = torch.random.get_rng_state()
    first, again = (random.load_backbone().model.state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is left alone
    assert all(torch.equal(first[name], again[name]) for name in first)
    with emulated_cuda():  # which raises where CUDA's is not
        there = replace(random, device="cuda").load_backbone().model.state_dict()
        assert all(torch.equal(first[name], there[name].cpu()) for name in first)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_is_the_weights(folder, precision, dtype):
    backbone = checkpoint(folder, precision=precision).load_backbone()
    assert {p.dtype for p in backbone.model.parameters()} == {dtype}


def test_identity_follows_the_contents_not_the_place(folder, tmp_path):
    before = checkpoint(folder).identity()
    moved = folder.rename(tmp_path / "moved")
    assert checkpoint(moved).identity() == before
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    assert checkpoint(moved).identity() != before


def test_root_holds_the_hubs_models_under_their_last_names(folder):
    beside = checkpoint("nobody/model", root=str(folder.parent))
    assert beside.identity() == checkpoint(folder).identity()
    assert beside.label == "model"
    assert checkpoint("mini-gpt2", root=str(folder.parent)).label == "mini-gpt2"  # bundled


def test_model_is_called_what_the_user_calls_it_whatever_a_link_leads_to(
    folder, tmp_path, monkeypatch
):  # fmt: skip
    (tmp_path / "gpt2-large").symlink_to(folder)
    linked = checkpoint(tmp_path / "gpt2-large")
    assert linked.label == "gpt2-large"
    assert linked.identity() == checkpoint(folder).identity()
    assert checkpoint("nobody/gpt2-large", root=str(tmp_path)).label == "gpt2-large"
    assert checkpoint(f"{folder}/../gpt2-large/").label == "gpt2-large"
    monkeypatch.chdir(folder)
    assert checkpoint(".").label == "model"


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("a/model", {"root": "no"}, "model.root=no has no folder model; put the model there or"),
        ("./no/folder", {}, r"model.path=\./no/folder is not a folder; give a folder"),
        ("nobody/nothing", {}, "Cannot load model.path=nobody/nothing: .* set model.path to"),
        ("x", {"weights": "some"}, "model.weights=some; choose one of pretrained, random"),
        ("x", {"weights": "random"}, "model.weights=random needs model.architecture"),
        ("", {}, "model.path is not set"),
        ("x", {"precision": "fp8"}, "precision=fp8; choose one of auto, fp32, bf16, fp16"),
        ("x", {"device": "tpu"}, "device=tpu; choose auto, cpu, cuda"),
        ("x", {"device": "cuda:99"}, "device=cuda:99, but torch .* sees"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_told(path, options, message):
    with pytest.raises(UserError, match=message):
        checkpoint(path, **options).config()


def test_folder_without_a_tokenizer_is_told(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer|Cannot load the tokenizer"):
        checkpoint(folder).load_tokenizer()


def test_tokenizer_of_another_model_is_refused(folder, tmp_path):
    tiny_model("roberta").save_pretrained(tmp_path / "small")
    other = checkpoint(tmp_path / "small", tokenizer=str(folder))
    with pytest.raises(
        UserError, match=r"holds .* tokens, the model embeds 120: .* another model's"
    ):
        other.load_tokenizer()


@pytest.mark.parametrize("rows", [0, 7], ids=["as many rows", "more rows"])
def test_tokens_added_to_both_tokenizer_and_model_run(tmp_path, rows):
    """Many models embed more rows than there are tokens, so that their number suits a device."""
    tokenizer = copy.deepcopy(mini_tokenizer("causal"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    tiny_model("gpt2", vocab_size=len(tokenizer) + rows).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = checkpoint(tmp_path).load_backbone()
    loaded = checkpoint(tmp_path).load_tokenizer()
    prompt = Task.from_file("sst2").prompt("natural", "causal")
    label_ids = torch.tensor(label_word_ids(prompt, loaded, "natural"))
    texts = ({"sentence": "a fine film <|end|>"}, {"sentence": "a dull one"})
    two = Rows(texts=texts, labels=(1, 0))
    batch = encode(two, prompt, loaded, max_length=60)
    assert loaded.convert_tokens_to_ids("<|end|>") not in batch.input_ids
    expected = one_candidate.answer_logits(backbone.model, batch, label_ids)
    torch.testing.assert_close(classify(backbone, label_ids, batch), expected, rtol=0, atol=1e-5)


def test_tokens_added_to_the_tokenizer_alone_are_refused(folder):
    tokenizer = copy.deepcopy(mini_tokenizer("masked"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"holds 1801 tokens, the model embeds 1800: it is another"):
        checkpoint(folder).load_tokenizer()


def test_checkpoint_without_its_vocabulary_head_is_refused(folder):
    tiny_model("roberta").roberta.save_pretrained(folder)
    with pytest.raises(UserError, match=r"lack .* tensors .*vocabulary head"):
        checkpoint(folder).load_backbone()


def test_truncated_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read: .*copy it again"):
        checkpoint(folder).load_backbone()


def rewritten(folder, change):
    """Write the weights anew, as ``change`` makes them of the present ones."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)


LAYER = "roberta.encoder.layer.0."
EXTRA = torch.zeros(2)
OF_OTHERS = {
    "another layer": {"roberta.encoder.layer.3.output.dense.bias": EXTRA},
    "relative positions": {f"{LAYER}attention.self.distance_embedding.weight": EXTRA},
    "a low-rank adapter": {f"{LAYER}attention.self.query.lora_A.weight": EXTRA},
    "without the body's name": {"encoder.layer.3.output.dense.bias": EXTRA},
}


@pytest.mark.parametrize("kind", OF_OTHERS)
def test_tensors_of_layers_that_the_model_lacks_are_refused(folder, kind):
    rewritten(folder, lambda tensors: tensors | OF_OTHERS[kind])
    with pytest.raises(UserError, match=r"holds 1 tensors of layers that the model of .* lacks"):
        checkpoint(folder).config()


def test_biases_that_the_configuration_denies_are_refused(tmp_path):
    """Not every name that ends as an old constant of transformers is one."""
    tokenizer = mini_tokenizer("causal")
    changes = {"vocab_size": len(tokenizer), "attention_bias": True}
    tiny_model("llama", **changes).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"attention_bias": False}))
    with pytest.raises(UserError, match=r"self_attn.k_proj.bias, .*: they are of two models"):
        checkpoint(tmp_path).config()


def test_harmless_tensors_and_old_names_are_read(folder, capfd):
    """Heads that are not used, constants, and the names that norms' weights had at first."""
    before = checkpoint(folder).load_backbone().model.state_dict()

    def old(tensors):
        renamed = {
            re.sub(r"LayerNorm.weight$", "LayerNorm.gamma", name): tensor
            for name, tensor in tensors.items()
            if "layer." in name
        }
        kept = {name: tensor for name, tensor in tensors.items() if "layer." not in name}
        return (
            kept | renamed | {"roberta.pooler.dense.bias": EXTRA, "classifier.bias": EXTRA.clone()}
        )

    rewritten(folder, old)
    after = checkpoint(folder).load_backbone().model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not capfd.readouterr().err  # the loader's own report says nothing that matters


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_files_that_are_not_the_models_may_lie_beside(folder, shards):
    """As the authors' own format does beside some models of the hub."""
    before = checkpoint(folder).load_backbone().model
    if shards:
        (folder / "model.safetensors").unlink()
        before.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
    save_file({"encoder.layer.0.attention.wq.weight": EXTRA}, folder / "consolidated.safetensors")
    after = checkpoint(folder).load_backbone().model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.state_dict().items())


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model."])
def test_a_prefix_before_all_names_is_told(folder, prefix):
    rewritten(folder, lambda tensors: {prefix + name: each for name, each in tensors.items()})
    with pytest.raises(UserError, match=rf"all tensors in .* begin with {prefix}, as a compiled"):
        checkpoint(folder).config()


@pytest.mark.parametrize("key", ["is_decoder", "add_cross_attention"])
def test_attention_in_another_direction_is_refused(folder, key):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: True}))
    with pytest.raises(UserError, match=rf"The model's {key}=True: .* Correct its config.json"):
        checkpoint(folder).config()


@pytest.mark.parametrize("name", ["model.gguf", "pytorch_model.bin"])
def test_weights_in_another_format_are_named(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    message = rf"holds no \*\.safetensors but {name}, and no pickle and no GGUF is read; load"
    with pytest.raises(UserError, match=message):
        checkpoint(folder).config()
