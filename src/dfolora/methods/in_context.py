"""In-context learning: labelled train rows stand as text before the row to classify.

Brown et al., *Language Models are Few-Shot Learners*, 2020. The frozen model is as it was.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar

import numpy as np
from torch import Tensor

from dfolora.data import FILLER, MASK, Batch, Encode, Encoder, Rows
from dfolora.engine import classify
from dfolora.errors import UserError
from dfolora.methods.method import FewShotData, NoFit, Predictor
from dfolora.model import Architecture, Backbone
from dfolora.search import Memo, forgetful
from dfolora.seeding import stream
from dfolora.validation import whole

BEFORE = "demonstrations before the row"
"""The field that holds the demonstrations; no column has this name."""


@dataclass(frozen=True, kw_only=True)
class InContext:
    """Shows as many train rows as the model's context holds; fits nothing.

    They come in a random order in which classes take turns, so that however many fit, no class has
    two more than another. Each is the filled prompt with its label word in the mask's place or, for
    a causal model, after the prompt and a space; single spaces join them and the row.
    """

    demonstrations: int = 32
    """The most demonstrations before a row; 0 is the manual prompt."""

    seeded: ClassVar[bool] = True
    budget: ClassVar[int] = 0
    resumable: ClassVar[bool] = False

    def check(self, architecture: Architecture) -> None:
        """Every supported model will do."""
        whole(self.demonstrations, "method.demonstrations", least=0)

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        shown = _by_turns(train.labels, seed)[: self.demonstrations]
        filled = (_demonstration(plain, train.texts[n], train.labels[n]) for n in shown)
        texts = tuple(accumulate(filled, initial=""))
        encoder = _with_room_before(plain)
        # What each number of demonstrations adds to a row, by the example of the shortest.
        lengths = plain.token_counts(train)
        shortest = train.select([lengths.index(min(lengths))] * len(texts))
        counts = encoder.token_counts(_preceded(shortest, texts))
        if len(counts) > 1 and counts[1] > plain.max_length:
            raise UserError(
                f"The demonstrations are longer than the model: the first of them and the shortest "
                f"train row are {counts[1]} tokens, the limit is {plain.max_length}. Raise "
                f"data.max_length if the model allows it, lower data.max_words, or set "
                f"method.demonstrations=0 to show none."
            )
        added = tuple(count - counts[0] for count in counts)
        return Demonstrated.of(plain, texts, added)

    def begin(
        self, backbone: Backbone, data: FewShotData, seed: int, memo: Memo = forgetful
    ) -> NoFit:
        """Nothing to fit; ``found`` counts the demonstrations of the rows last predicted."""
        encode, found = data.encode, dict[str, float]()
        if not isinstance(encode, Demonstrated):
            raise TypeError("In-context learning needs data.encode to be its own encoder.")

        def logits(batch: Batch) -> Tensor:
            counts = encode.counts(batch)
            found["demonstrations_mean"] = float(np.mean(counts))
            found["demonstrations_min"] = min(counts)
            found["demonstrations_max"] = max(counts)
            return classify(backbone, data.label_ids, batch)

        return NoFit(Predictor(logits=logits, found=found))


@dataclass(frozen=True, kw_only=True)
class Demonstrated:
    """Encodes each row behind as many demonstrations as fit.

    Rows that are too long by themselves have none and are cut as ever.
    """

    plain: Encoder
    """The prompt alone."""
    encoder: Encoder
    """The prompt with the field ``BEFORE`` at its start."""
    texts: tuple[str, ...]
    """Texts of 0, 1, 2, ... demonstrations."""
    added: tuple[int, ...]
    """Token counts of these texts."""

    @classmethod
    def of(cls, plain: Encoder, texts: Sequence[str], added: Sequence[int]) -> "Demonstrated":
        """With the prompt alone, and what was found to stand before it."""
        before = _with_room_before(plain)
        return cls(plain=plain, encoder=before, texts=tuple(texts), added=tuple(added))

    def __call__(self, rows: Rows, group: int | None = None) -> Batch:
        return self.encoder(self._shown(rows, self._fitting(rows)), group)

    def counts(self, batch: Batch) -> list[int]:
        """The number of demonstrations before each row of a batch encoded here, ``(N,)``."""
        number = {text: count for count, text in enumerate(self.texts)}
        return [number[text[BEFORE]] for text in batch.rows.texts]

    def _fitting(self, rows: Rows) -> list[int]:
        """How many fit beside each row: by the sum of both, then by the tokens of the whole."""
        limit = self.plain.max_length
        alone = self.plain.token_counts(rows)
        counts = [max(bisect_right(self.added, limit - tokens) - 1, 0) for tokens in alone]
        # Where texts meet, the whole may have more tokens than its parts.
        while too_many := [
            n
            for n, tokens in enumerate(self.encoder.token_counts(self._shown(rows, counts)))
            if tokens > limit and counts[n]
        ]:
            for n in too_many:
                counts[n] -= 1
        return counts

    def _shown(self, rows: Rows, counts: Sequence[int]) -> Rows:
        return _preceded(rows, [self.texts[count] for count in counts])


def _with_room_before(plain: Encoder) -> Encoder:
    pattern = f"{{{BEFORE}}}{plain.prompt.pattern}"
    return replace(plain, prompt=replace(plain.prompt, pattern=pattern))


def _by_turns(labels: Sequence[int], seed: int) -> list[int]:
    """Row numbers in a random order in which every class has its nth row before any its next."""
    order = stream(seed, "demonstrations").permutation(len(labels)).tolist()
    seen, turns = Counter[int](), dict[int, int]()
    for row in order:
        turns[row] = seen[labels[row]]
        seen[labels[row]] += 1
    return sorted(order, key=turns.__getitem__)


def _demonstration(plain: Encoder, text: Mapping[str, str], label: int) -> str:
    prompt, word = plain.prompt, plain.prompt.label_words[label]
    constants = {MASK: word}
    if FILLER in prompt.placeholders:
        constants[FILLER] = plain.filler_words()
    filled = prompt.pattern.format_map({**text, **constants})
    return f"{filled} " if prompt.kind == "masked" else f"{filled} {word} "


def _preceded(rows: Rows, before: Sequence[str]) -> Rows:
    """The rows, each with its demonstrations as one more field."""
    texts = zip(rows.texts, before, strict=True)
    return replace(rows, texts=tuple({**text, BEFORE: shown} for text, shown in texts))
