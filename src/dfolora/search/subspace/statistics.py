"""Standard deviations of hidden states, which scale the random maps (Jin, Liu, Tan 2024, Eq. 6)."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from dfolora.model import Backbone, Sequences, no_cudnn_attention

Statistics = Literal["real_tokens", "all_positions", "one"]
"""Positions that count: all_positions includes padding, as the released code does. With one
they see nothing, and every layer's is 1."""

CLIP_ROUNDS = 5
CLIP_STDS = 3.0
STATISTICS_TOKENS = 2048
"""Tokens at once, whatever the engine's limits, because the search depends on their bits."""


@torch.inference_mode()
def layer_stds(
    backbone: Backbone, input_ids: Tensor, attention_mask: Tensor, statistics: Statistics
) -> Iterator[float]:
    """The standard deviation of each layer's input; for layer 0, of the word embeddings.

    Args:
        backbone: The model, without any adaptation.
        input_ids: ``(N, T)``.
        attention_mask: ``(N, T)``.
        statistics: Which positions count.
    """
    if statistics == "one":
        yield from [1.0] * len(backbone.layers)
        return
    # Layer 0 takes the whole embedding matrix in place of its input (released code).
    yield backbone.embedding.float().std().item() * backbone.embedding_scale
    real = attention_mask.sum(-1)
    counted = torch.full_like(real, input_ids.shape[1])
    sequences = Sequences(
        input_ids=input_ids,
        lengths=real if statistics == "real_tokens" else counted,
        real=real,
        answer=torch.zeros_like(real),
    )
    packs = list(sequences.packs(STATISTICS_TOKENS, backbone.device))
    entering = [backbone.embed(pack) for pack in packs]
    for layer in backbone.layers[:-1]:
        with no_cudnn_attention():
            entering = [(layer(hidden, packed), packed) for hidden, packed in entering]
        yield clipped_std(torch.cat([hidden for hidden, _packed in entering], dim=1))


def clipped_std(values: Tensor) -> float:
    """Standard deviation after five rounds of clipping to mean +- 3 standard deviations."""
    values = values.float()
    for _ in range(CLIP_ROUNDS):
        mean, std = values.mean(), values.std()
        values = values.clamp(mean - CLIP_STDS * std, mean + CLIP_STDS * std)
    return values.std().item()
