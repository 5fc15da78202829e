"""The model's own parameters, all of them or some biases, trained as copies.

The copies are put in place of the frozen weights for the time of a forward pass.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dfolora.data import Batch, Encode, Encoder, TextEncoder
from dfolora.errors import UserError
from dfolora.methods.gradient.trainable import (
    Attached,
    answers,
    drawn,
    label_words,
    through_model,
)
from dfolora.model import Architecture, Backbone
from dfolora.validation import choice, subset

HEADS = ("label_words", "classifier")


@dataclass(frozen=True, kw_only=True)
class ModelTuning:
    """Every parameter of the model."""

    head: str = "label_words"
    """``label_words``: the prompt, answered by the vocabulary head, which is trained too;
    ``classifier``: the bare text and a new linear head on its first token, or a causal model's
    last, in place of the vocabulary head."""

    through_model: ClassVar[bool] = True

    def check(self, architecture: Architecture) -> None:
        choice(self.head, "method.trained.head", HEADS)

    def encoder(self, plain: Encoder) -> Encode:
        """The prompt, or the bare text for a classifier."""
        return plain if self.head == "label_words" else TextEncoder.of(plain)

    @contextmanager
    def attached(self, backbone: Backbone, label_ids: Tensor, seed: int) -> Iterator[Attached]:
        if self.head == "label_words":
            names = [name for name, _ in backbone.model.named_parameters()]
            yield _answering_by_words(backbone, names, label_ids)
        else:
            yield _answering_by_classifier(backbone, len(label_ids), seed)


@dataclass(frozen=True, kw_only=True)
class BitFit:
    """Biases of every layer, where the model has them (Ben Zaken et al. 2022)."""

    biases: Sequence[str] = ("q", "k", "v", "o", "attention_norm", "ffn_norm", "down")
    """The modules whose biases are trained: a subset of q, k, v, o, up, down and the two norms."""

    through_model: ClassVar[bool] = True

    def check(self, architecture: Architecture) -> None:
        self._modules(architecture)

    def encoder(self, plain: Encoder) -> Encode:
        """The prompt as it is."""
        return plain

    @contextmanager
    def attached(self, backbone: Backbone, label_ids: Tensor, _seed: int) -> Iterator[Attached]:
        architecture = backbone.architecture
        named = [
            f"{architecture.family.layers}.{layer}.{module}.bias"
            for layer in range(architecture.layers)
            for module in self._modules(architecture)
        ]
        parameters = dict(backbone.model.named_parameters())
        names = [name for name in named if name in parameters]
        if not names:
            raise UserError(
                f"None of {', '.join(self.biases)} has a bias in this model, so BitFit has nothing "
                f"to train; use another method, such as method=lora."
            )
        yield _answering_by_words(backbone, names, label_ids)

    def _modules(self, architecture: Architecture) -> list[str]:
        """Dotted names inside a layer."""
        maps = architecture.family.maps
        places = {name: getattr(architecture.family, name) for name in OTHERS}
        subset(self.biases, "method.trained.biases", (*maps, *places))
        whole = architecture.whole_modules([name for name in self.biases if name in maps])
        return [*whole, *(places[name] for name in self.biases if name in places)]


OTHERS = ("up", "down", "attention_norm", "ffn_norm")
"""Modules with a bias other than attention maps, by their names in ``Family``."""


class _Reading(nn.Module):
    """A module around a reader, so that copies can replace the model's parameters."""

    def __init__(self, model: nn.Module, read: Callable[[Batch], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._read = read

    def forward(self, batch: Batch) -> Tensor:
        return self._read(batch)


def _copies(backbone: Backbone, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Trainable float32 copies of parameters; tied ones are copied once."""
    parameters = {name: backbone.model.get_parameter(name) for name in names}
    return {
        name: nn.Parameter(value.detach().to(torch.float32, copy=True))
        for name, value in parameters.items()
    }


def _with_copies(
    backbone: Backbone, copies: Mapping[str, Tensor], read: Callable[[Batch], Tensor]
) -> Callable[[Batch], Tensor]:
    """``read``, on the model with the copies, rounded to its type, in place of its parameters."""
    reading = _Reading(backbone.model, read)

    def read_with_copies(batch: Batch) -> Tensor:
        placed = {f"model.{name}": copy.to(backbone.dtype) for name, copy in copies.items()}
        return functional_call(reading, placed, (batch,))

    return read_with_copies


def _answering_by_words(backbone: Backbone, names: Iterable[str], label_ids: Tensor) -> Attached:
    copies = _copies(backbone, names)
    logits = _with_copies(backbone, copies, label_words(backbone, label_ids))
    return Attached(parameters=copies, reader=through_model(backbone, logits))


def _answering_by_classifier(backbone: Backbone, classes: int, seed: int) -> Attached:
    body = backbone.architecture.family.body
    weights = backbone.model.get_submodule(body).named_parameters()
    copies = _copies(backbone, (f"{body}.{name}" for name, _ in weights))
    with drawn(seed):
        head = nn.Linear(backbone.architecture.body_width, classes)
    head.to(backbone.device)
    features = _with_copies(backbone, copies, partial(answers, backbone))

    def logits(batch: Batch) -> Tensor:
        states = features(batch).float()
        with torch.autocast(backbone.device.type, enabled=False):
            return head(states)

    named = {f"classifier.{name}": value for name, value in head.named_parameters()}
    return Attached(
        parameters=copies | named, reader=through_model(backbone, logits), new_head=True
    )
