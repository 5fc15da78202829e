"""Real tokenizers and datasets, from a folder beside the repository; tests skip without it."""

import os
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

SHARED = Path(os.environ.get("DFOLORA_SHARED", Path(__file__).parents[2] / "shared"))


def shared(path: str) -> Path:
    """A file or folder of the shared folder; skips the calling test where it is absent."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"{path} is not in {SHARED}; set DFOLORA_SHARED to the folder that holds it")
    return found


@cache
def real_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """One of roberta-base, gpt2, bert-base-uncased."""
    return AutoTokenizer.from_pretrained(shared(f"models/tokenizers/{name}"))
