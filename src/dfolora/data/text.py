"""Encodes rows as plain text without a prompt, for classifiers on a token's features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dfolora.data.encode import Batch, Encoder
from dfolora.data.rows import Rows
from dfolora.data.task import Kind
from dfolora.data.tokenization import Defuser, appended, padded
from dfolora.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """Joins the fields of a row as the tokenizer joins a pair of texts.

    The answer position is the token whose features a classifier reads: a masked model's first, a
    causal model's last of the text. All token types are 0.
    """

    tokenizer: "PreTrainedTokenizerBase"
    kind: Kind
    max_length: int

    @classmethod
    def of(cls, plain: Encoder) -> "TextEncoder":
        """An encoder with the tokenizer and length limit of a prompt's encoder."""
        return cls(tokenizer=plain.tokenizer, kind=plain.prompt.kind, max_length=plain.max_length)

    def __call__(self, rows: Rows, group: int | None = None) -> Batch:
        """Encode rows; a row that is too long loses the ends of its longest texts.

        Args:
            rows: ``N`` rows.
            group: Ignored.

        Raises:
            UserError: There are no rows, or one has no token.
        """
        if not len(rows):
            raise UserError("No rows to encode.")
        end = appended(self.tokenizer, len(_pair(rows.texts[0]))) if self.kind == "causal" else 0
        limit = self.max_length + end
        if (special := self.tokenizer.num_special_tokens_to_add(pair=True)) >= limit:
            raise UserError(
                f"A limit of {self.max_length} tokens leaves no room for text beside {special} "
                f"special ones; raise data.max_length."
            )
        safe = Defuser(self.tokenizer)
        texts = [_pair(safe(row)) for row in rows.texts]
        ids = self._tokens(texts)
        overlong = [n for n, row in enumerate(ids) if len(row) > limit]
        for n in overlong:
            (ids[n],) = self._tokens(texts[n : n + 1], truncation=True, max_length=limit)
        ids = [row[: len(row) - end] for row in ids]
        if [] in ids:
            raise UserError(
                f"Row {ids.index([]) + 1} has no token after encoding, so there is nothing to "
                f"read; leave out rows without text."
            )
        input_ids, attention_mask = padded(ids, self.tokenizer.pad_token_id or 0)
        last = attention_mask.sum(-1) - 1
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            answer=last if self.kind == "causal" else torch.zeros_like(last),
            labels=torch.tensor(rows.labels),
            rows=rows,
            truncated=len(overlong),
        )

    def _tokens(self, texts: list[tuple[str, ...]], **options: object) -> list[list[int]]:
        encoded = self.tokenizer(*map(list, zip(*texts, strict=True)), verbose=False, **options)
        return [list(row) for row in encoded["input_ids"]]


def _pair(row: Mapping[str, str]) -> tuple[str, ...]:
    """One or two texts, the most that a tokenizer joins."""
    first, *rest = row.values()
    return (first, " ".join(rest)) if rest else (first,)
