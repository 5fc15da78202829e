"""Statistics of the unadapted model's hidden states, from one pass over the train set.

Their standard deviations scale the random maps (Jin, Liu, Tan 2024, Eq. 6); the moments of what
enters and leaves the attention maps give the core subspace its directions.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dfolora.model import Backbone, Pack, Sequences, no_cudnn_attention

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
    packs = _packs(backbone, input_ids, attention_mask, statistics)
    entering = [backbone.embed(pack) for pack in packs]
    for layer in backbone.layers[:-1]:
        with no_cudnn_attention():
            entering = [(layer(hidden, packed), packed) for hidden, packed in entering]
        yield clipped_std(torch.cat([hidden for hidden, _packed in entering], dim=1))


def _packs(
    backbone: Backbone, input_ids: Tensor, attention_mask: Tensor, statistics: Statistics
) -> list[Pack]:
    """The pieces in which the positions that count go through the model."""
    real = attention_mask.sum(-1)
    counted = torch.full_like(real, input_ids.shape[1])
    sequences = Sequences(
        input_ids=input_ids,
        lengths=real if statistics == "real_tokens" else counted,
        real=real,
        answer=torch.zeros_like(real),
    )
    return list(sequences.packs(STATISTICS_TOKENS, backbone.device))


class Moments:
    """Mean and covariance of rows that come in pieces, in float64.

    A piece is centred at its own mean and joined to those before it by the update of Chan, Golub
    and LeVeque 1979, so that a mean far from 0 costs no digits.
    """

    def __init__(self) -> None:
        self.count = 0
        """M, the number of rows so far."""
        self._mean: Any = 0.0
        self._scatter: Any = 0.0

    def add(self, rows: Tensor) -> None:
        """See more rows, ``(_, d)``."""
        rows = rows.double()
        mean = rows.mean(0)
        centred, apart = rows - mean, mean - self._mean
        total = self.count + len(rows)
        between = self.count * len(rows) / total * torch.outer(apart, apart)
        self._scatter = self._scatter + centred.T @ centred + between
        self._mean = self._mean + apart * (len(rows) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """``(d, d)``, float64, divided by M; on the CPU."""
        covariance: Tensor = self._scatter / self.count
        return covariance.cpu()


@dataclass(frozen=True, kw_only=True)
class MapMoments:
    """What enters and leaves one attention map."""

    inputs: Moments
    """Of X, ``(M, d_in)``."""
    outputs: Moments
    """Of Y = X W + b, ``(M, d_out)``."""


@torch.inference_mode()
def map_moments(
    backbone: Backbone, input_ids: Tensor, attention_mask: Tensor, targets: Sequence[str]
) -> Iterator[Mapping[str, MapMoments]]:
    """The moments of each layer's attention maps at the real tokens, by map name.

    At any time there are those of one layer, d x d each, and the hidden states that enter it.

    Args:
        backbone: The model, without any adaptation.
        input_ids: ``(N, T)``.
        attention_mask: ``(N, T)``.
        targets: The maps.
    """
    packs = _packs(backbone, input_ids, attention_mask, "real_tokens")
    entering = [backbone.embed(pack) for pack in packs]
    for layer in backbone.layers:
        shared = Moments()  # of what q, k and v read
        moments = {
            name: MapMoments(inputs=Moments() if name == "o" else shared, outputs=Moments())
            for name in targets
        }
        inward = [name for name in targets if name != "o"]
        with no_cudnn_attention(), _seen(layer.maps["o"].module, moments.get("o")):
            for place, (hidden, packed) in enumerate(entering):
                projected = layer.project(hidden, packed)
                if inward:
                    shared.add(projected.normed[0])
                for name in inward:
                    linear = layer.maps[name]
                    output = projected.outputs[linear.module][0]
                    moments[name].outputs.add(output[:, linear.columns])
                entering[place] = layer.attend(projected, packed, {}), packed
        yield moments


@contextmanager
def _seen(module: nn.Module, moments: MapMoments | None) -> Iterator[None]:
    """A context in which the moments, if any are wanted, see each call of a module."""
    if moments is None:
        yield
        return

    def see(_module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        moments.inputs.add(given[0].flatten(0, -2))
        moments.outputs.add(output.flatten(0, -2))

    hook = module.register_forward_hook(see)
    try:
        yield
    finally:
        hook.remove()


def clipped_std(values: Tensor) -> float:
    """Standard deviation after five rounds of clipping to mean +- 3 standard deviations."""
    values = values.float()
    for _ in range(CLIP_ROUNDS):
        mean, std = values.mean(), values.std()
        values = values.clamp(mean - CLIP_STDS * std, mean + CLIP_STDS * std)
    return values.std().item()
