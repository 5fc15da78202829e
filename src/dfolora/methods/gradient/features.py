"""Classifiers on features of the frozen model, which are computed once per batch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from dfolora.data import Batch, Encode, Encoder, TextEncoder, part, pieces
from dfolora.methods.gradient.trainable import Attached, Reader, at_answers, drawn
from dfolora.model import Architecture, Backbone, exact_cudnn
from dfolora.validation import choice


@dataclass(frozen=True, kw_only=True)
class FeatureHead:
    """A trained head on the model's last hidden states of the bare text."""

    head: str = "mlp"
    """A name in ``HEADS``."""

    through_model: ClassVar[bool] = False

    def check(self, architecture: Architecture) -> None:
        choice(self.head, "method.trained.head", HEADS)

    def encoder(self, plain: Encoder) -> Encode:
        """The bare text."""
        return TextEncoder.of(plain)

    @contextmanager
    def attached(self, backbone: Backbone, label_ids: Tensor, seed: int) -> Iterator[Attached]:
        """The model is only read."""
        with drawn(seed):
            head = HEADS[self.head](backbone.architecture.body_width, len(label_ids))
        head.to(backbone.device)

        def reader(batch: Batch) -> Reader:
            features, lengths = _features(backbone, batch), batch.attention_mask.sum(-1)
            return lambda rows: head(features[rows], lengths[rows], batch.answer[rows])

        with exact_cudnn():  # of the LSTM, backwards too
            yield Attached(parameters=dict(head.named_parameters()), reader=reader, new_head=True)


class _Mlp(nn.Module):
    """H-H-C on one token's feature."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.out = nn.Linear(width, classes)

    def forward(self, features: Tensor, _lengths: Tensor, answer: Tensor) -> Tensor:
        """``(n, T, H), (n,), (n,) -> (n, C)``."""
        feature = at_answers(features, answer.to(features.device))
        return self.out(torch.tanh(self.dense(feature)))  # tanh as in transformers' own heads


class _Bilstm(nn.Module):
    """A bidirectional LSTM of hidden size H over all tokens' features, then 2H-C."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * width, classes)

    def forward(self, features: Tensor, lengths: Tensor, _answer: Tensor) -> Tensor:
        """``(n, T, H), (n,), (n,) -> (n, C)``; past its length no row is read."""
        packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return self.out(torch.cat([*last], dim=-1))


HEADS: Mapping[str, Callable[[int, int], nn.Module]] = {"mlp": _Mlp, "bilstm": _Bilstm}
"""``(H, C) -> head``."""


@torch.no_grad()
def _features(backbone: Backbone, batch: Batch) -> Tensor:
    """The last hidden states of the frozen model: ``(N, T, H)``, float32, 0 at padding."""
    shape = *batch.input_ids.shape, backbone.architecture.body_width
    features = torch.zeros(shape, device=backbone.device)
    for rows in pieces(batch, backbone.tokens):
        some = part(batch, rows).to(backbone.device)
        hidden = backbone.forward(input_ids=some.input_ids, attention_mask=some.attention_mask)
        features[rows.to(backbone.device), : hidden.shape[1]] = hidden.float()
    return features
