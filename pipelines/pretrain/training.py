"""Pretraining of the bundled models on the corpus: one pass, each document seen once."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dfolora.errors import UserError
from dfolora.mini.world import corpus
from dfolora.model import FAMILIES, Architecture
from dfolora.seeding import stream
from dfolora.validation import not_negative, positive, share, whole

FAMILIES_HERE = ("roberta", "gpt2")
"""Families whose vocabulary head is called ``lm_head``."""
WINDOW = 16
"""Tokens on either side that count as neighbours for the embeddings' start."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a pretraining."""

    documents: int
    batch_tokens: int = 4096
    """Tokens per batch, including padding."""
    learning_rate: float = 4e-3
    """Its peak; a tenth of the steps lead up to it, a cosine down to zero."""
    weight_decay: float = 0.01
    masked: float = 0.2
    """Share of tokens that a masked model predicts."""
    held_out: int = 2000
    """Number of documents for the held-out loss."""
    seed: int = 0

    def check(self) -> None:
        """Raise UserError if a value makes no sense."""
        for name in ("documents", "batch_tokens", "held_out"):
            whole(getattr(self, name), f"recipe.{name}", least=1)
        whole(self.seed, "recipe.seed", least=0)
        if not 0 < share(self.masked, "recipe.masked") < 1:
            raise UserError(f"recipe.masked={self.masked} must lie between 0 and 1.")
        positive(self.learning_rate, "recipe.learning_rate")
        not_negative(self.weight_decay, "recipe.weight_decay")


class Pretraining:
    """A model from random weights; each iteration is one optimizer step and gives its loss.

    Args:
        config: A ``transformers`` configuration of a known family.
        tokenizer: Its tokenizer.
        recipe: How.

    Raises:
        UserError: The model does not fit the tokenizer or the corpus, or is of no family that is
            pretrained here.
    """

    def __init__(self, config: Any, tokenizer: Any, recipe: Recipe) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._family = FAMILIES[config.model_type]
        if config.model_type not in FAMILIES_HERE:
            raise UserError(
                f"Models of type {config.model_type} are not pretrained here; choose one of "
                f"{', '.join(FAMILIES_HERE)}."
            )
        if not config.hidden_size <= config.vocab_size >= len(tokenizer):
            raise UserError(
                f"model.architecture.vocab_size={config.vocab_size} must be at least the "
                f"tokenizer's {len(tokenizer)} and the hidden size, {config.hidden_size}."
            )
        self._masked = self._family.kind == "masked"
        self._rng = stream(recipe.seed, "pretraining")
        documents = _encoded(corpus(recipe.documents), tokenizer, self._masked)
        held_out = _encoded(corpus(recipe.held_out, "held-out"), tokenizer, self._masked)
        longest, limit = max(map(len, documents + held_out)), Architecture.of(config).max_length
        if longest > limit:
            raise UserError(
                f"The longest document is {longest} tokens, the model reads {limit}; raise "
                f"max_position_embeddings in model.architecture."
            )
        self._batches = list(_batches(documents, recipe.batch_tokens, self._rng))
        self._held_out = list(_batches(held_out, recipe.batch_tokens, self._rng))
        loader: Any = (
            transformers.AutoModelForMaskedLM if self._masked else transformers.AutoModelForCausalLM
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(recipe.seed)
            # The default attention's backward takes half of all time at these lengths.
            self.model = loader.from_config(
                config, attn_implementation="eager", trust_remote_code=False
            )
        self._start_from_counts(documents[:20000], config.vocab_size)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return len(self._batches)

    @property
    def tokens(self) -> int:
        """Tokens of all documents, without padding."""
        return sum(int((batch >= 0).sum()) for batch in self._batches)

    def __iter__(self) -> Iterator[float]:
        """Mean cross-entropy of each batch in turn, nats a guessed token."""
        recipe = self._recipe
        optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )
        self.model.train()
        for step, batch in enumerate(self._batches, 1):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step, self.steps)
            loss = self._loss(batch, self._rng)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            yield loss.item()

    @torch.inference_mode()
    def held_out_loss(self) -> float:
        """Mean cross-entropy on documents drawn apart, the same guesses on every call."""
        self.model.eval()
        rng = stream(self._recipe.seed, "held-out masks")
        losses = [self._loss(batch, rng).item() for batch in self._held_out]
        self.model.train()
        return float(np.mean(losses))

    def _loss(self, batch: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        ids = torch.from_numpy(batch)
        real = ids >= 0
        ids = ids.clamp(min=0)
        if self._masked:
            shown, guessed = self._hide(ids, real, rng)
            target = ids[guessed]
        else:
            shown, guessed = ids, torch.zeros_like(real)
            guessed[:, :-1] = real[:, 1:]
            target = ids[:, 1:][real[:, 1:]]
        with torch.autocast("cpu", torch.bfloat16):
            body = self.model.get_submodule(self._family.body)
            hidden = body(input_ids=shown, attention_mask=real.long()).last_hidden_state
            logits = self.model.lm_head(hidden[guessed])
        return functional.cross_entropy(logits.float(), target)

    def _hide(self, ids: Tensor, real: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """BERT's masking: of the tokens to guess, 80 % hidden, 10 % replaced, 10 % as they are."""
        special = torch.isin(ids, torch.tensor(self._tokenizer.all_special_ids))
        draws = torch.from_numpy(rng.random((2, *ids.shape)))
        guessed = real & ~special & (draws[0] < self._recipe.masked)
        shown = ids.clone()
        shown[guessed & (draws[1] < 0.8)] = self._tokenizer.mask_token_id
        swapped = guessed & (draws[1] >= 0.9)
        others = rng.integers(len(self._tokenizer), size=int(swapped.sum()))
        shown[swapped] = torch.from_numpy(others)
        return shown, guessed

    def _start_from_counts(self, documents: Sequence[NDArray[np.int64]], size: int) -> None:
        """Embeddings from which words share neighbours, head bias from how common they are.

        A small model otherwise spends most of its steps on guessing by frequency alone.
        """
        width = self.model.config.hidden_size
        pairs = np.zeros((size, size))
        for ids in documents:
            for gap in range(1, min(WINDOW, len(ids) - 1) + 1):
                np.add.at(pairs, (ids[:-gap], ids[gap:]), 1.0 / gap)
        pairs += pairs.T
        counts = pairs.sum(0) + 1e-9
        with np.errstate(divide="ignore"):
            information = np.log(pairs * pairs.sum() / np.outer(counts, counts))
        left, scale, _ = np.linalg.svd(np.maximum(information, 0))
        start = left[:, :width] * np.sqrt(scale[:width])
        weight = self.model.get_input_embeddings().weight
        with torch.no_grad():
            weight += torch.from_numpy(start * (0.05 / start.std())).to(weight)
            if (bias := self.model.lm_head.bias if self._masked else None) is not None:
                frequency = np.bincount(np.concatenate(documents), minlength=size) + 1.0
                bias.copy_(torch.from_numpy(np.log(frequency / frequency.sum())))


def _schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    if step < warm:
        return step / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _encoded(texts: Sequence[str], tokenizer: Any, masked: bool) -> list[NDArray[np.int64]]:
    encoded = tokenizer(list(texts))["input_ids"]
    end = [] if masked else [tokenizer.eos_token_id]
    return [np.array(ids + end) for ids in encoded]


def _batches(
    documents: Sequence[NDArray[np.int64]], tokens: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Documents of like length together, ``(n, T)``, -1 where one has ended; in random order."""
    lengths = np.array([len(ids) for ids in documents])
    order = np.lexsort((rng.random(len(lengths)), lengths))
    starts = [0]
    for place, number in enumerate(order):
        if (place + 1 - starts[-1]) * lengths[number] > tokens:
            starts.append(place)
    cuts = np.split(order, starts[1:])
    for which in rng.permutation(len(cuts)):
        chosen = [documents[number] for number in cuts[which]]
        batch = np.full((len(chosen), max(map(len, chosen))), -1)
        for row, ids in zip(batch, chosen, strict=True):
            row[: len(ids)] = ids
        yield batch
