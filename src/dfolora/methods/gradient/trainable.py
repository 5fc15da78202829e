"""What is trained, and how it is put onto a frozen model and taken off again."""

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
    """Something trainable on a model, for as long as it is there."""

    parameters: Mapping[str, nn.Parameter]
    """What is trained, by name; float32, on the model's device."""
    reader: Callable[[Batch], Reader]
    """Reads a batch with the present parameters; what the batch needs once is done at once."""
    new_head: bool = False
    """Whether a head starts at random, so that the start is no candidate."""
    write: Callable[[Path], None] | None = None
    """Writes the present parameters to a folder its own way, where it has one."""

    def save(self, folder: Path) -> None:
        """Write the present parameters; where there is no own way, ``trained.safetensors``."""
        if self.write is not None:
            return self.write(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu() for name, value in self.parameters.items()}
        save_file(tensors, folder / "trained.safetensors", metadata={"format": "pt"})


class Trainable(Protocol):
    """What is trained, configured."""

    @property
    def through_model(self) -> bool:
        """Whether gradients pass through the model, or only features of its are read."""
        ...

    def check(self, architecture: Architecture) -> None:
        """Raise UserError if it makes no sense for such a model."""
        ...

    def encoder(self, plain: Encoder) -> Encode:
        """How rows are put to the model: by the task's prompt, or otherwise."""
        ...

    def attached(
        self, backbone: Backbone, label_ids: Tensor, seed: int
    ) -> AbstractContextManager[Attached]:
        """A context in which it is on the model; leaving it, the model is as it was.

        Args:
            backbone: The frozen model; its weights are never written.
            label_ids: ``(C,)``, the label words' token ids.
            seed: Of what starts at random.
        """
        ...


@contextmanager
def drawn(seed: int) -> Iterator[None]:
    """Whatever torch draws at random inside comes from a stream of ours; its own goes on after."""
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
    """What the model as it is now gives where answers are read, ``(n, H)``, before its head."""
    hidden = backbone.forward(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    return at_answers(hidden, batch.answer)


def label_words(backbone: Backbone, label_ids: Tensor) -> Callable[[Batch], Tensor]:
    """Label-word logits ``(n, C)`` of the model, whatever is on it.

    Args:
        backbone: The model.
        label_ids: ``(C,)``.
    """
    ids = label_ids.to(backbone.device)
    return lambda batch: backbone.answer_logits(answers(backbone, batch), ids)
