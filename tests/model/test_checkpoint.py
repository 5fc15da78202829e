"""Models from folders, from random weights and from a hub that is not there."""

import json
from dataclasses import replace

import pytest
import torch

from dfolora.errors import UserError
from dfolora.model import checkpoint as checkpoint_module
from dfolora.model.checkpoint import Checkpoint
from tests.conftest import LOADERS, SIZES, mini_tokenizer, tiny_model
from tests.emulation import emulated_cuda


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


def test_checkpoint_without_its_vocabulary_head_is_refused(folder):
    tiny_model("roberta").roberta.save_pretrained(folder)
    with pytest.raises(UserError, match=r"lack .* tensors .*vocabulary head"):
        checkpoint(folder).load_backbone()


def test_truncated_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read: .*copy it again"):
        checkpoint(folder).load_backbone()


@pytest.mark.parametrize("name", ["model.gguf", "pytorch_model.bin"])
def test_weights_in_another_format_are_named(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    message = rf"holds no \*\.safetensors but {name}, and no pickle and no GGUF is read; load"
    with pytest.raises(UserError, match=message):
        checkpoint(folder).config()
