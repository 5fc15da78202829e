"""The interface of trainable parts: attached to the frozen model, trained, and detached."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dfolora.data import Batch, Encode, Encoder, part
from dfolora.model import Architecture, Backbone
from dfolora.seeding import stream

Reader = Callable[[Tensor], Tensor]
"""Numbers of rows of a batch ``(n,)`` -> logits ``(n, C)``, float32; gradients pass."""


@dataclass(frozen=True, kw_only=True)
class Attached:
    """Trainable parameters while they are attached to a model."""

    parameters: Mapping[str, nn.Parameter]
    """The parameters by name; float32, on the model's device."""
    reader: Callable[[Batch], Reader]
    """Reads a batch with the present parameters; work per batch is done once."""
    new_head: bool = False
    """Whether a head starts at random, so that the start is not a candidate."""
    write: Callable[[Path], None] | None = None
    """Writes the present parameters in a format of its own; None for the default."""

    def save(self, folder: Path) -> None:
        """Write the present parameters, by default to ``trained.safetensors``."""
        if self.write is not None:
            return self.write(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu() for name, value in self.parameters.items()}
        save_file(tensors, folder / "trained.safetensors", metadata={"format": "pt"})


class Trainable(Protocol):
    """A configured trainable part of a model."""

    @property
    def through_model(self) -> bool:
        """Whether gradients pass through the model, or only its features are read."""
        ...

    def check(self, architecture: Architecture) -> None:
        """Raise UserError if it does not suit such a model."""
        ...

    def encoder(self, plain: Encoder) -> Encode:
        """The encoder of rows, given the task's prompt."""
        ...

    def attached(
        self, backbone: Backbone, label_ids: Tensor, seed: int
    ) -> AbstractContextManager[Attached]:
        """A context in which it is attached; afterwards the model is as before.

        Args:
            backbone: The frozen model; its weights are never written.
            label_ids: ``(C,)``, the label words' token ids.
            seed: Of what starts at random.
        """
        ...


@contextmanager
def drawn(seed: int) -> Iterator[None]:
    """A context in which torch draws from a private random stream."""
    with torch.random.fork_rng(devices=[]):  # modules are made on the CPU, wherever they go then
        torch.default_generator.manual_seed(int(stream(seed, "trainable").integers(2**63)))
        yield


def through_model(
    backbone: Backbone, logits: Callable[[Batch], Tensor]
) -> Callable[[Batch], Reader]:
    """A reader that runs the model on each part that is asked for.

    Beside a half-precision model the trained parameters stay float32: torch casts as it goes. The
    loss is not scaled, so fp16, whose small gradients vanish, is worse than bf16.

    Args:
        backbone: The model.
        logits: Of a batch on the model's device: ``(n, C)``.
    """
    dtype, kind = backbone.dtype, backbone.device.type

    def reader(batch: Batch) -> Reader:
        def read(rows: Tensor) -> Tensor:
            with torch.autocast(kind, dtype=dtype, enabled=dtype != torch.float32):
                return logits(part(batch, rows).to(backbone.device))

        return read

    return reader


def at_answers(hidden: Tensor, answer: Tensor) -> Tensor:
    """Each row's hidden state where its answer is read: ``(n, T, H), (n,) -> (n, H)``."""
    return hidden[torch.arange(len(answer), device=answer.device), answer]


def answers(backbone: Backbone, batch: Batch) -> Tensor:
    """The model's hidden states where answers are read, ``(n, H)``, before its head."""
    hidden = backbone.forward(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    return at_answers(hidden, batch.answer)


def label_words(backbone: Backbone, label_ids: Tensor) -> Callable[[Batch], Tensor]:
    """Label-word logits ``(n, C)`` of the model with what is attached.

    Args:
        backbone: The model.
        label_ids: ``(C,)``.
    """
    ids = label_ids.to(backbone.device)
    return lambda batch: backbone.answer_logits(answers(backbone, batch), ids)
