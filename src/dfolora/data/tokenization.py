"""Tokenization shared by all encoders: safe texts and padded tensors."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dfolora.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Defuser:
    """Splits special tokens that a text spells out by a space, so that they stay text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._special = {
            *tokenizer.all_special_tokens,
            *(token.content for token in tokenizer.added_tokens_decoder.values() if token.special),
        }

    def __call__(self, row: Mapping[str, str]) -> dict[str, str]:
        """The row's fields without special tokens."""
        return {field: self._defused(text) for field, text in row.items()}

    def _defused(self, text: str) -> str:
        for token in self._special:
            text = text.replace(token, f"{token[:1]} {token[1:]}")
        return text


def appended(tokenizer: "PreTrainedTokenizerBase", texts: int = 1) -> int:
    """How many tokens a tokenizer puts after a text, such as one that ends it.

    Args:
        tokenizer: Which.
        texts: 1, or 2 for a pair of texts.
    """
    sample = tokenizer.encode("a", add_special_tokens=False)
    ids = list(tokenizer(*["a"] * texts)["input_ids"])
    stops = range(len(ids), len(sample) - 1, -1)
    last = next((stop for stop in stops if ids[stop - len(sample) : stop] == sample), None)
    if last is None:
        raise UserError(
            f"{tokenizer.name_or_path} writes 'a' as {ids}, in which {sample}, its tokens without "
            f"special ones, do not occur: it cannot be told where a causal model is to answer."
        )
    return len(ids) - last


def padded(ids: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Pad on the right: token ids and attention mask, both ``(N, T)``."""
    longest = max(map(len, ids))
    tokens = [[*row, *[pad] * (longest - len(row))] for row in ids]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
    return torch.tensor(tokens), torch.tensor(mask)
