"""Genomes of the genetic prompt search: words between the fields of a prompt.

An individual is a genome: for every slot of the prompt the token ids of the words that stand
there. A slot comes before each field, the label's among them; a causal model's label comes last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from dfolora.data import FILLER, HOLE, MASK, Batch, Encoder, Prompt, Rows
from dfolora.errors import UserError

Genome = tuple[tuple[int, ...], ...]
"""Token ids by slot; each field has one slot."""

GOLD = "gold label word"
"""The field of a row that holds it; no column is called so."""


@dataclass(frozen=True, kw_only=True)
class Hole:
    """A place in a genome that a token will fill."""

    genome: Genome
    slot: int
    place: int

    def filled(self, token: int) -> Genome:
        """The genome with a token there."""
        genes = self.genome[self.slot]
        longer = (*genes[: self.place], token, *genes[self.place :])
        return (*self.genome[: self.slot], longer, *self.genome[self.slot + 1 :])


@dataclass(frozen=True, kw_only=True)
class Template:
    """The fields of a prompt in their order, without its words; an ``Encode`` of just these.

    Rows above the limit lose text as ever, and none is left out. As an ``Encode`` it keeps ``room``
    tokens free for words, so that a row which is whole here is whole under every prompt: what it
    counts as truncated are the rows that some prompt might cut.
    """

    plain: Encoder
    """The task's prompt: its words are ignored, its fields and label words kept."""
    room: int
    """The most tokens of words."""

    def __post_init__(self) -> None:
        if self.plain.max_length <= self.room:
            raise UserError(
                f"The limit of {self.plain.max_length} tokens leaves no text beside "
                f"method.room={self.room} tokens kept for the words that are searched; lower "
                f"method.room or raise data.max_length where the model allows it."
            )
        if self._causal and self.plain.readout == "released":
            raise UserError(
                "The genetic prompt search answers at the last token of every row, not at the "
                "last column of a padded batch; use data.readout=last_token."
            )

    def __call__(self, rows: Rows, group: int | None = None) -> Batch:
        shorter = replace(self.plain, max_length=self.plain.max_length - self.room)
        return replace(shorter, prompt=self.prompt(self.empty))(rows, group)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The placeholders that slots stand before, the label's as ``MASK``."""
        names = tuple(name for name in self.plain.prompt.placeholders if name != FILLER)
        return (*names, MASK) if self._causal else names

    @cached_property
    def slots(self) -> tuple[int, ...]:
        """Slots that may hold words."""
        allowed = self.plain.prompt.slots
        return tuple(n for n, name in enumerate(self.fields) if allowed is None or name in allowed)

    @property
    def empty(self) -> Genome:
        """No words."""
        return ((),) * len(self.fields)

    def prompt(self, genome: Genome) -> Prompt:
        """The fields and words, joined by single spaces, as a task's file could have it."""
        return self._prompt(genome, label="" if self._causal else f"{{{MASK}}}")

    def encode(self, rows: Rows, genome: Genome) -> Batch:
        """The rows in the prompt of these words."""
        return replace(self.plain, prompt=self.prompt(genome))(rows)

    def encode_gold(self, rows: Rows, hole: Hole) -> Batch:
        """Each row with its label word, answered where the token is to come.

        A causal model cannot read a label that is yet to come: to it the row's word comes after the
        label.
        """
        label = f"{{{GOLD}}}"
        prompt = (
            self._prompt(hole.genome, label=label)
            if self._causal
            else self._prompt(self._masked(hole), label=label, hole=f"{{{MASK}}}")
        )
        words = self.plain.prompt.label_words
        texts = tuple(
            {**text, GOLD: words[label]}
            for text, label in zip(rows.texts, rows.labels, strict=True)
        )
        return replace(self.plain, prompt=prompt)(replace(rows, texts=texts))

    def encode_blank(self, rows: Rows, hole: Hole) -> tuple[Batch, Tensor]:
        """Each row without its label, answered there, and where the token is to come, ``(N,)``."""
        if self._causal:
            batch = self.encode(rows, hole.genome)
            return batch, batch.answer
        prompt = self._prompt(self._masked(hole), label=f"{{{MASK}}}", hole=f"{{{HOLE}}}")
        batch = replace(self.plain, prompt=prompt)(rows)
        masks = batch.input_ids == self.plain.tokenizer.mask_token_id
        return batch, masks.scatter(1, batch.answer[:, None], False).int().argmax(1)

    def spells(self, genome: Genome, slot: int) -> bool:
        """Whether the slot's words, written as text, are tokenized to the same tokens."""
        text = self._words(genome[slot])
        start = "" if slot == 0 else " "  # nothing precedes the first slot
        ids = self.plain.tokenizer.encode(start + text, add_special_tokens=False)
        return bool(text) and ids == list(genome[slot])

    def suits(self, token: int) -> bool:
        """Whether a token may be a word: no special one, and none that gives a label word away."""
        word = self._words((token,)).casefold()
        labels = [label.casefold() for label in self.plain.prompt.label_words]
        return (
            token not in self._special
            and word != ""
            and not any(
                label in word or label.startswith(word) or label.endswith(word) for label in labels
            )
        )

    @cached_property
    def _special(self) -> frozenset[int]:
        tokenizer = self.plain.tokenizer
        return frozenset([*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder])

    @property
    def _causal(self) -> bool:
        return self.plain.prompt.kind == "causal"

    def _masked(self, hole: Hole) -> Genome:
        return hole.filled(int(self.plain.tokenizer.mask_token_id or 0))

    def _prompt(self, genome: Genome, *, label: str, hole: str = "") -> Prompt:
        pieces = []
        for name, genes in zip(self.fields, genome, strict=True):
            words = self._words(genes).replace("{", "{{").replace("}", "}}")
            if hole:
                words = words.replace(str(self.plain.tokenizer.mask_token), hole)
            pieces += [words, label if name == MASK else f"{{{name}}}"]
        pattern = " ".join(piece for piece in pieces if piece)
        return replace(self.plain.prompt, pattern=pattern, slots=None)

    def _words(self, genes: Sequence[int]) -> str:
        text = self.plain.tokenizer.decode(list(genes), clean_up_tokenization_spaces=False)
        return str(text).strip()


def crossed(first: Genome, second: Genome, share: float, rng: np.random.Generator) -> Genome:
    """Crossover: the first genome, with each slot of the second with probability ``share``."""
    return tuple(
        theirs if rng.random() < share else own for own, theirs in zip(first, second, strict=True)
    )


def mutated(genome: Genome, slots: Sequence[int], room: int, rng: np.random.Generator) -> Hole:
    """Mutation: a hole in a random slot, for one more token or, as likely, in place of one.

    Args:
        genome: What varies.
        slots: Those that may hold words.
        room: At most so many tokens in all; when there are as many, one is replaced.
        rng: Draws.
    """
    full = size(genome) >= room
    slot = int(rng.choice([n for n in slots if genome[n] or not full]))
    genes = genome[slot]
    if genes and (full or rng.random() < 0.5):
        place = int(rng.integers(len(genes)))
        fewer = (*genes[:place], *genes[place + 1 :])
        return Hole(genome=(*genome[:slot], fewer, *genome[slot + 1 :]), slot=slot, place=place)
    # The very first word of a prompt has no space before it, which it would need in second place.
    least = 1 if slot == 0 and genes else 0
    return Hole(genome=genome, slot=slot, place=int(rng.integers(least, len(genes) + 1)))


def size(genome: Genome) -> int:
    """The number of tokens."""
    return sum(map(len, genome))
