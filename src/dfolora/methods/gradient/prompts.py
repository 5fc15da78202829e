"""Trained vectors before the input, or keys and values before every layer's, by PEFT."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dfolora.data import FIRST_FILLER, Batch, Encode, Encoder, filler_ids
from dfolora.errors import UserError
from dfolora.methods.gradient.trainable import Attached, at_answers, drawn, through_model
from dfolora.model import Architecture, Backbone
from dfolora.validation import whole

PREFIX_STD = 0.02
"""Standard deviation of the prefixes' start, as of most models' initial weights."""


@dataclass(frozen=True, kw_only=True)
class PromptTuning:
    """Vectors before the embedded prompt (Lester et al. 2021); they start as filler words'."""

    tokens: int = 50

    through_model: ClassVar[bool] = True

    def check(self, architecture: Architecture) -> None:
        _check(self.tokens, architecture)

    def encoder(self, plain: Encoder) -> Encode:
        """The prompt, with room for the vectors."""
        filler_ids(plain.tokenizer, self.tokens)
        return _with_room(plain, self.tokens)

    @contextmanager
    def attached(self, backbone: Backbone, label_ids: Tensor, seed: int) -> Iterator[Attached]:
        from peft import PromptTuningConfig

        words = backbone.embedding[FIRST_FILLER : FIRST_FILLER + self.tokens]
        words = words * backbone.embedding_scale
        config = PromptTuningConfig(
            num_virtual_tokens=self.tokens,
            token_dim=backbone.embedding.shape[1],
            num_layers=backbone.architecture.layers,
            num_attention_heads=backbone.architecture.heads,
        )
        wrapped = _peft_model(backbone, config, seed, lambda vectors: vectors.copy_(words))

        def hidden(batch: Batch, mask: Tensor) -> Tensor:
            embedded = wrapped.word_embeddings(batch.input_ids)
            vectors = wrapped.get_prompt(len(embedded)).to(embedded.dtype)
            inputs = torch.cat([vectors, embedded], dim=1)
            return backbone.forward(inputs_embeds=inputs, attention_mask=mask)[:, self.tokens :]

        yield _attached(backbone, wrapped, hidden, label_ids)


@dataclass(frozen=True, kw_only=True)
class PrefixTuning:
    """Keys and values before those of every layer (Li and Liang 2021), as P-Tuning v2 has them."""

    tokens: int = 25

    through_model: ClassVar[bool] = True

    def check(self, architecture: Architecture) -> None:
        _check(self.tokens, architecture)
        if not architecture.family.caches:
            raise UserError(
                "The attention of this model takes no keys and values from outside, so no prefix "
                "can stand before them; use another model or method=prompt_tuning."
            )

    def encoder(self, plain: Encoder) -> Encode:
        """The prompt, with room for the prefix."""
        return _with_room(plain, self.tokens)

    @contextmanager
    def attached(self, backbone: Backbone, label_ids: Tensor, seed: int) -> Iterator[Attached]:
        from peft import PrefixTuningConfig

        config = PrefixTuningConfig(num_virtual_tokens=self.tokens)
        wrapped = _peft_model(backbone, config, seed, lambda vectors: vectors.mul_(PREFIX_STD))

        def hidden(batch: Batch, mask: Tensor) -> Tensor:
            return backbone.forward(
                input_ids=batch.input_ids,
                attention_mask=mask,
                past_key_values=wrapped.get_prompt(len(mask)),
            )

        yield _attached(backbone, wrapped, hidden, label_ids)


def _check(tokens: int, architecture: Architecture) -> None:
    whole(tokens, "method.trained.tokens", least=1)
    if tokens >= architecture.max_length:
        raise UserError(
            f"{tokens} trained tokens leave no room in a model of at most "
            f"{architecture.max_length}; choose fewer."
        )


def _with_room(plain: Encoder, tokens: int) -> Encoder:
    if tokens >= plain.max_length:
        raise UserError(
            f"{tokens} trained tokens leave no room within the limit of {plain.max_length}; choose "
            f"fewer, or raise data.max_length."
        )
    return replace(plain, max_length=plain.max_length - tokens)


def _peft_model(
    backbone: Backbone, config: Any, seed: int, start: Callable[[Tensor], Tensor]
) -> Any:
    """PEFT's model around ours, which it leaves alone, with the vectors' start."""
    from peft import get_peft_model

    causal = backbone.architecture.family.kind == "causal"
    # PEFT has no name for masked language models; this one passes their logits on.
    config.task_type = "CAUSAL_LM" if causal else "FEATURE_EXTRACTION"
    with drawn(seed):
        wrapped = get_peft_model(backbone.model, config)
    with torch.no_grad():
        start(wrapped.prompt_encoder["default"].embedding.weight)
    return wrapped


def _attached(
    backbone: Backbone, wrapped: Any, hidden: Callable[[Batch, Tensor], Tensor], label_ids: Tensor
) -> Attached:
    """Not through PEFT's own forward, which would ask the vocabulary head at every position."""
    tokens = wrapped.active_peft_config.num_virtual_tokens
    ids = label_ids.to(backbone.device)

    def logits(batch: Batch) -> Tensor:
        mask = functional.pad(batch.attention_mask, (tokens, 0), value=1)
        return backbone.answer_logits(at_answers(hidden(batch, mask), batch.answer), ids)

    return Attached(
        parameters=dict(wrapped.prompt_encoder["default"].named_parameters()),
        reader=through_model(backbone, logits),
        write=lambda folder: wrapped.save_pretrained(str(folder)),
    )
