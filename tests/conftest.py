"""Small models of every family, a toy batch and a toy task: no network, seconds on a CPU."""

import os

# Before torch and the hub's client are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from functools import lru_cache

import pytest
import torch
import transformers

from dfolora.data import Batch, Rows
from dfolora.engine.forward import COARSE
from dfolora.mini import BUNDLED
from dfolora.model.backbone import Backbone
from dfolora.model.preflight import loader_of
from tests.families import CONFIGS, VOCABULARY

SIZES = {
    "roberta": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
        "pad_token_id": 1,
    },
    "bert": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    },
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
}
MASKED = transformers.AutoModelForMaskedLM
LOADERS = {"roberta": MASKED, "bert": MASKED, "gpt2": transformers.AutoModelForCausalLM}


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A working folder with a store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


@lru_cache
def mini_tokenizer(kind: str):
    """The bundled tokenizer of a masked or a causal model."""
    name = {"masked": "mini-roberta", "causal": "mini-gpt2"}[kind]
    return transformers.AutoTokenizer.from_pretrained(BUNDLED[name])


def tiny_model(name: str, **changes):
    """A model of ``SIZES`` or ``CONFIGS``, at a spread of weights where candidates do differ."""
    sizes = {"model_type": name, "vocab_size": VOCABULARY, "initializer_range": 0.2}
    sizes |= SIZES[name] if name in SIZES else CONFIGS[name]
    config = transformers.AutoConfig.for_model(**sizes | changes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = loader_of(config).from_config(config).eval()
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(params=sorted(SIZES))
def family(request):
    return request.param


@pytest.fixture
def backbone(family):
    return Backbone(tiny_model(family))


@lru_cache
def shared_backbone(family, dtype=torch.float32):
    """For tests that leave no hook in it."""
    return Backbone(tiny_model(family).to(dtype))


def random_batch(lengths, answers, seed=1):
    """Rows of random tokens, padded with 1, of three classes."""
    rows, longest = len(lengths), max(max(lengths), max(answers) + 1)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (rows, longest), generator=generator)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    ids[mask == 0] = 1
    answer, labels = torch.tensor(answers), torch.arange(rows) % 3
    return Batch(
        input_ids=ids, attention_mask=mask, answer=answer, labels=labels,
        rows=Rows(texts=({},) * rows, labels=tuple(labels.tolist())), truncated=0,
    )  # fmt: skip


@pytest.fixture(params=["fine", "coarse"])
def grouping(request, monkeypatch):
    """How the engine groups lengths for attention: as on a CPU, or as on a GPU."""
    monkeypatch.setitem(COARSE, "cpu", request.param == "coarse")


@pytest.fixture
def batch():
    """Eight rows of 4 to 19 tokens; answers at the first, a middle and the last position.

    Coarse groups pad some of them, with any model.
    """
    return random_batch([19, 4, 12, 7, 19, 4, 13, 4], [0, 3, 5, 6, 18, 2, 12, 1])


@pytest.fixture
def label_ids():
    return torch.tensor([7, 50, 99])
