"""Encodes rows with a prompt into a batch of token ids."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from dfolora.data.rows import Rows
from dfolora.data.task import FILLER, HOLE, MASK, Prompt
from dfolora.data.tokenization import Defuser, appended, padded
from dfolora.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Readout = Literal["last_token", "released"]
"""Where a causal model's answer is read: at the last token, or as the released code does."""

FIRST_FILLER = 1000
"""The first vocabulary id of the filler words, as in the released code."""
FILLERS = 50
"""The number of filler words."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Encoded rows, padded on the right to the longest."""

    input_ids: Tensor
    """Token ids, ``(N, T)``, long."""
    attention_mask: Tensor
    """1 at tokens and 0 at padding, ``(N, T)``, long."""
    answer: Tensor
    """The position where the answer is read, ``(N,)``, long."""
    labels: Tensor
    """Classes, ``(N,)``, long."""
    rows: Rows
    """The rows that were encoded."""
    truncated: int
    """Rows that lost text to the length limit."""

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        tensors = {
            name: getattr(self, name).to(device)
            for name in ("input_ids", "attention_mask", "answer", "labels")
        }
        return replace(self, **tensors)


def encode(
    rows: Rows,
    prompt: Prompt,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    readout: Readout = "last_token",
    group: int | None = None,
    fillers: int = FILLERS,
) -> Batch:
    """Fill the prompt with each row and tokenize it as one string.

    A row longer than ``max_length`` loses the ends of its longest fields; the prompt itself is
    never cut. A special token that is spelled out in a row stays text.

    Args:
        rows: ``N`` rows with the prompt's fields.
        prompt: The pattern.
        tokenizer: The model's.
        max_length: The most tokens of a row, including special tokens.
        readout: Where a causal model answers: at the row's ``last_token``, or, with ``released``,
            at the last column of the padded batch, which is padding for all but the longest row.
            A masked model answers at the mask.
        group: Rows that the released readout pads together (16 in its test); None for all.
        fillers: The number of words that ``{filler}`` stands for.

    Raises:
        UserError: The prompt does not fit the tokenizer or ``max_length``, or an encoded row has
            lost its masks (masked) or has no token (causal).
    """
    if not len(rows):
        raise UserError("No rows to encode.")
    render = _Renderer(prompt, tokenizer, fillers)
    texts = [render.safe(text) for text in rows.texts]
    ids = render.tokens([render(text) for text in texts])
    overlong = [n for n, row in enumerate(ids) if len(row) > max_length]
    for n in overlong:
        ids[n] = _fitted(texts[n], render, max_length)
    if prompt.kind == "masked":
        masks = [name for name in prompt.placeholders if name in (MASK, HOLE)]
        answer = [_mask_position(row, tokenizer, n, masks) for n, row in enumerate(ids, 1)]
    else:
        answer = _causal_answers([len(row) for row in ids], readout, group)
    input_ids, attention_mask = padded(ids, tokenizer.pad_token_id or 0)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        answer=torch.tensor(answer),
        labels=torch.tensor(rows.labels),
        rows=rows,
        truncated=len(overlong),
    )


class Encode(Protocol):
    """Turns rows into a batch for a model."""

    def __call__(self, rows: Rows, group: int | None = None) -> Batch: ...


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """`encode` with all arguments but the rows bound."""

    prompt: Prompt
    tokenizer: "PreTrainedTokenizerBase"
    max_length: int
    readout: Readout = "last_token"
    fillers: int = FILLERS

    def __call__(self, rows: Rows, group: int | None = None) -> Batch:
        return encode(
            rows,
            self.prompt,
            self.tokenizer,
            max_length=self.max_length,
            readout=self.readout,
            group=group,
            fillers=self.fillers,
        )

    def token_counts(self, rows: Rows) -> tuple[int, ...]:
        return token_counts(rows, self.prompt, self.tokenizer, fillers=self.fillers)

    def texts_tokens(self, vocabulary: int) -> Tensor:
        """Which tokens a text can have, ``(V,)``: no special ones, nor any beyond the tokenizer's.

        Args:
            vocabulary: V, the model's, which may embed more than the tokenizer knows.
        """
        tokens = torch.zeros(vocabulary, dtype=torch.bool)
        tokens[: len(self.tokenizer)] = True
        tokens[[*self.tokenizer.all_special_ids]] = False
        return tokens

    def shortest(self) -> int:
        """Tokens of a row with empty fields, including special tokens."""
        empty = dict.fromkeys(self.prompt.placeholders, "")
        return self.token_counts(Rows(texts=(empty,), labels=(0,)))[0]

    def filler_words(self) -> str:
        """The words that ``{filler}`` stands for."""
        return _filler_words(self.tokenizer, self.fillers)


def token_counts(
    rows: Rows, prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", *, fillers: int = FILLERS
) -> tuple[int, ...]:
    """Tokens of each row before `encode` cuts it, including special tokens.

    Args:
        rows: ``N`` rows with the prompt's fields.
        prompt: The pattern.
        tokenizer: The model's.
        fillers: The number of words that ``{filler}`` stands for.

    Returns:
        One number per row, ``(N,)``.
    """
    render = _Renderer(prompt, tokenizer, fillers)
    ids = render.tokens([render(render.safe(text)) for text in rows.texts])
    return tuple(map(len, ids))


def fits(
    rows: Rows, prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", *, max_length: int
) -> tuple[bool, ...]:
    """Which rows `encode` would not cut: the released code's length rule.

    Args:
        rows: ``N`` rows with the prompt's fields.
        prompt: The pattern.
        tokenizer: The model's.
        max_length: The most tokens of a row, including special tokens.

    Returns:
        One truth value per row, ``(N,)``.
    """
    return tuple(count <= max_length for count in token_counts(rows, prompt, tokenizer))


class _Renderer:
    """A prompt bound to a tokenizer: rows to strings, strings to token ids."""

    def __init__(
        self, prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", fillers: int = FILLERS
    ) -> None:
        self._pattern = prompt.pattern
        self._tokenizer = tokenizer
        self._constants = _constants(prompt, tokenizer, fillers)
        self._appended = appended(tokenizer) if prompt.kind == "causal" else 0
        self.safe = Defuser(tokenizer)

    def __call__(self, text: Mapping[str, str]) -> str:
        """The filled pattern."""
        return self._pattern.format_map({**text, **self._constants})

    def tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of filled patterns, including special tokens.

        A causal model answers after the pattern, so what a tokenizer appends to it is left off.
        """
        encoded = self._tokenizer(list(prompts), verbose=False)  # no warning: we cut what is long
        return [list(row[: len(row) - self._appended]) for row in encoded["input_ids"]]


def _constants(
    prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", fillers: int
) -> dict[str, str]:
    """The values of the placeholders that are not fields."""
    constants: dict[str, str] = {}
    if MASK in prompt.placeholders:
        if tokenizer.mask_token is None:
            raise UserError(
                f"Tokenizer {tokenizer.name_or_path} has no mask token for the masked pattern "
                f"{prompt.pattern!r}; use a causal prompt or a masked language model."
            )
        constants |= {MASK: str(tokenizer.mask_token), HOLE: str(tokenizer.mask_token)}
    if FILLER in prompt.placeholders:
        constants[FILLER] = _filler_words(tokenizer, fillers)
    return constants


def filler_ids(tokenizer: "PreTrainedTokenizerBase", fillers: int) -> list[int]:
    """The token ids of the filler words.

    Args:
        tokenizer: The model's.
        fillers: The number of words.

    Raises:
        UserError: The vocabulary is too small.
    """
    stop = FIRST_FILLER + fillers
    if len(tokenizer) < stop:
        raise UserError(
            f"A filler of {fillers} words needs the vocabulary ids {FIRST_FILLER} to {stop - 1}, "
            f"but {tokenizer.name_or_path} has {len(tokenizer)}; use another model, or fewer, or "
            f"remove {{filler}} from the pattern."
        )
    return list(range(FIRST_FILLER, stop))


def _filler_words(tokenizer: "PreTrainedTokenizerBase", fillers: int) -> str:
    return str(tokenizer.decode(filler_ids(tokenizer, fillers)))


def _fitted(text: Mapping[str, str], render: _Renderer, max_length: int) -> list[int]:
    """Token ids of a row whose fields are capped at the largest number of characters that fits.

    All fields share the cap, so the longest is cut first.
    """

    def capped(cap: int) -> list[int]:
        return render.tokens([render({field: value[:cap] for field, value in text.items()})])[0]

    caps = range(max(map(len, text.values())) + 1)
    cap = bisect_right(caps, max_length, key=lambda cap: len(capped(cap))) - 1
    if cap < 0:
        raise UserError(
            f"The prompt alone is {len(capped(0))} tokens, above the limit of {max_length}; "
            f"shorten the pattern or raise the limit."
        )
    return capped(cap)


def _mask_position(
    ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase", row: int, expected: Sequence[str]
) -> int:
    mask = tokenizer.mask_token_id  # looked up once: it costs more than the whole comparison
    masks = [position for position, token in enumerate(ids) if token == mask]
    if len(masks) != len(expected):
        raise UserError(
            f"Mask lost: row {row} has {len(masks)} mask tokens instead of {len(expected)} after "
            f"encoding by {tokenizer.name_or_path}; check the pattern and the tokenizer's mask "
            f"token."
        )
    return masks[expected.index(MASK)]


def _causal_answers(lengths: Sequence[int], readout: Readout, group: int | None) -> list[int]:
    if 0 in lengths:
        raise UserError(
            f"Row {lengths.index(0) + 1} has no token after encoding, so nothing can answer; "
            f"add words to the causal pattern."
        )
    if readout == "last_token":
        return [length - 1 for length in lengths]
    if readout != "released":
        raise UserError(f"Readout {readout!r} is unknown; choose last_token or released.")
    size = len(lengths) if group is None else group
    starts = [n - n % size for n in range(len(lengths))]
    return [max(lengths[start : start + size]) - 1 for start in starts]
