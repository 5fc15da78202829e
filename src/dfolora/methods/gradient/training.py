"""The loop of the trained baselines: a grid of learning rates, and the best look at dev."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dfolora.data import METRICS, Batch, part, pieces
from dfolora.engine import cross_entropy
from dfolora.errors import UserError
from dfolora.methods.gradient.trainable import Attached, Reader
from dfolora.methods.method import FewShotData, Progress
from dfolora.search import DevPoint, by_score
from dfolora.seeding import stream
from dfolora.validation import not_negative, positive, whole

PASSES = 3
"""Calls per epoch: one forward pass, and a backward pass counted as two."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """AdamW at a constant learning rate; each rate of a grid trains anew."""

    learning_rates: Sequence[float]
    epochs: int
    """Epochs per rate."""
    batch_size: int = 16
    dev_every: int = 5
    """Epochs between two dev evaluations; the last epoch always has one."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """The largest gradient norm; larger gradients are scaled down."""

    @property
    def budget(self) -> int:
        """Passes over the train set."""
        return PASSES * self.epochs * len(self.learning_rates)

    def looks_after(self, epoch: int) -> bool:
        """Whether the epoch ends with a dev evaluation."""
        return epoch % self.dev_every == 0 or epoch == self.epochs

    def check(self) -> None:
        """Raise UserError if a value makes no sense."""
        rates = self.learning_rates
        if not isinstance(rates, list | tuple) or not rates:
            raise UserError(f"method.training.learning_rates={rates} must be a list of numbers.")
        for rate in rates:
            positive(rate, "in method.training.learning_rates, learning_rate")
        if len(set(rates)) < len(rates):
            raise UserError(f"method.training.learning_rates={list(rates)} repeats a number.")
        for name in ("epochs", "batch_size", "dev_every"):
            whole(getattr(self, name), f"method.training.{name}", least=1)
        not_negative(self.weight_decay, "method.training.weight_decay")
        positive(self.clip, "method.training.clip")


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch."""

    calls: int
    losses: NDArray[np.float64]
    """Losses of the minibatches, each before its update; inf after training broke off."""
    loss: float
    """Running mean over the epoch's rows; inf as in ``losses``."""
    learning_rate: float
    epoch: int
    """The epoch of this learning rate, from 1."""

    @property
    def step_size(self) -> float:
        """The learning rate."""
        return self.learning_rate


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The solution of a ``DevPoint``."""

    learning_rate: float
    """Its learning rate; 0 for the start."""
    tensors: Mapping[str, Tensor]
    """Copies on the CPU, by name."""

    @classmethod
    def of(cls, parameters: Mapping[str, nn.Parameter], learning_rate: float = 0.0) -> "Trained":
        """Copy the present parameters."""
        tensors = {name: _on_host(value.detach()) for name, value in parameters.items()}
        return cls(learning_rate=learning_rate, tensors=tensors)

    @torch.no_grad()
    def put(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Restore the copied parameters."""
        for name, parameter in parameters.items():
            parameter.copy_(self.tensors[name])


def _on_host(value: Tensor) -> Tensor:
    """A copy on the CPU; of a GPU's in pinned memory, which is several times as fast.

    On the GPU itself it would count towards the peak memory that methods are compared by.
    """
    return torch.empty_like(value, device="cpu", pin_memory=value.is_cuda).copy_(value)


Readers = Iterable[tuple[Tensor, Reader]]
"""Pieces of a batch: row numbers and a reader."""


def readers(attached: Attached, batch: Batch, tokens: int) -> Iterator[tuple[Tensor, Reader]]:
    """Readers of a batch in pieces of similar length, of at most ``tokens`` tokens."""
    for rows in pieces(batch, tokens):
        yield rows, attached.reader(part(batch, rows))


@torch.no_grad()
def all_logits(readers: Readers) -> Tensor:
    """Logits of all rows in the batch's order, ``(N, C)``."""
    order, logits = list[Tensor](), list[Tensor]()
    for rows, read in readers:
        order.append(rows)
        logits.append(read(torch.arange(len(rows))))
    return torch.cat(logits)[torch.cat(order).argsort()]


class Training:
    """One training; iterate over the epochs of all learning rates.

    Each rate starts from the same parameters and takes the minibatches in the same order.

    Args:
        attached: What is trained.
        data: Train and dev set.
        spec: How.
        seed: Of the order of minibatches.
        tokens: At most so many go through the model at once when dev is looked at.
    """

    def __init__(
        self, attached: Attached, data: FewShotData, spec: TrainingSpec, seed: int, tokens: int
    ) -> None:
        self._attached = attached
        self._spec = spec
        self._seed = seed
        self._labels = data.train.labels
        self._read = attached.reader(data.train)
        self._dev = list(readers(attached, data.dev, tokens))
        self._dev_labels = data.dev.labels
        self._metric = METRICS[data.metric]
        self.calls = 0
        """Spent so far."""
        self.best: DevPoint | None = None
        """The best look at dev so far."""

    def __iter__(self) -> Iterator[Progress]:
        """Train; only the best dev evaluation keeps its solution, which is large.

        Raises:
            UserError: No learning rate came to its end.
        """
        start = Trained.of(self._attached.parameters)
        looks = [] if self._attached.new_head else self.look(0.0)
        finished = False
        for learning_rate in self._spec.learning_rates:
            start.put(self._attached.parameters)
            for epoch in self.epochs(learning_rate):
                sound = bool(np.isfinite(epoch.loss))
                if sound and self._spec.looks_after(epoch.epoch):
                    seen = self.look(learning_rate)
                    looks, sound = looks + seen, bool(seen)
                yield Progress(step=epoch, looks=looks, selected=self.best)
                looks = []
                if not sound:
                    break
            else:
                finished = True
        if not finished:
            raise UserError(
                f"Training diverged with every learning rate of "
                f"{list(self._spec.learning_rates)}: a loss or a gradient was no finite number. "
                f"Choose lower learning rates, or precision=fp32."
            )

    def epochs(self, learning_rate: float) -> Iterator[Epoch]:
        """Train from the present parameters, an epoch at a time."""
        optimizer = torch.optim.AdamW(
            self._attached.parameters.values(),
            lr=learning_rate,
            weight_decay=self._spec.weight_decay,
        )
        rng = stream(self._seed, "batches")
        for epoch in range(1, self._spec.epochs + 1):
            order = torch.from_numpy(rng.permutation(len(self._labels)))
            batches = order.split(self._spec.batch_size)
            losses = np.array(list(self._losses(optimizer, batches)))
            self.calls += PASSES
            yield Epoch(
                calls=self.calls,
                losses=losses,
                loss=float(np.average(losses, weights=[*map(len, batches[: len(losses)])])),
                learning_rate=learning_rate,
                epoch=epoch,
            )

    def _losses(
        self, optimizer: torch.optim.Optimizer, batches: Sequence[Tensor]
    ) -> Iterator[float]:
        """One update per minibatch, until a loss is not finite."""
        parameters = list(self._attached.parameters.values())
        for rows in batches:
            logits = self._read(rows)
            loss = functional.cross_entropy(logits, self._labels[rows].to(logits.device))
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, self._spec.clip)
            if not torch.isfinite(loss.detach() + norm):
                yield np.inf
                return
            optimizer.step()
            yield loss.item()

    def look(self, learning_rate: float) -> list[DevPoint]:
        """Evaluate the present parameters on dev and keep the best; [] if the loss is NaN."""
        logits = all_logits(self._dev).cpu()
        point = DevPoint(
            calls=self.calls,
            score=float(self._metric(self._dev_labels.numpy(), logits.argmax(-1).numpy())),
            loss=float(cross_entropy(logits, self._dev_labels)),
            solution=None,
        )
        if not np.isfinite(point.loss):
            return []
        if self.best is None or by_score(point) < by_score(self.best):
            trained = Trained.of(self._attached.parameters, learning_rate)
            self.best = replace(point, solution=trained)
        return [point]
