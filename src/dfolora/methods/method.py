"""The interface of methods: a method begins a fit, a fit yields steps and a predictor."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Batch, Encode, Encoder, Rows
from dfolora.model import Architecture, Backbone
from dfolora.search import DevPoint, Memo, forgetful


@dataclass(frozen=True, kw_only=True)
class FewShotData:
    """The data that a method may see: never the test set."""

    train: Batch
    dev: Batch
    """Train and dev are encoded by the method's ``encoder``, as the test set is."""
    label_ids: Tensor
    """Token ids of the label words: ``(C,)``."""
    metric: str
    more_ids: Sequence[Sequence[int]] = ()
    """Token ids of the task's other words of each class, the best first; none of no class."""
    encode: Encode | None = None
    """The method's ``encoder``; None if batches were built from tokens."""


class Step(Protocol):
    """A generation of a search, or an epoch of a training."""

    @property
    def calls(self) -> int:
        """Passes over the train set so far; a pass with backward counts as three."""
        ...

    @property
    def losses(self) -> NDArray[np.float64]:
        """Losses of the step's candidates or minibatches, ``(P,)``; inf for NaN."""
        ...

    @property
    def loss(self) -> float:
        """Train loss at the step's end, or an epoch's running mean; NaN if unknown."""
        ...

    @property
    def step_size(self) -> float:
        """Sigma, amplitude or learning rate; NaN if there is none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step and its dev evaluations."""

    step: Step
    looks: Sequence[DevPoint]
    """Dev evaluations of this step, mostly none."""
    selected: DevPoint | None
    """The best dev evaluation so far."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A fitted method."""

    logits: Callable[[Batch], Tensor]
    """Label-word logits, ``(N, C)``, float32, of a batch encoded as train and dev were."""
    write: Callable[[Path], None] = lambda _folder: None
    """Writes the fitted part to a folder."""
    dev: DevPoint | None = None
    """The dev evaluation that selected it; None for a method that selects nothing."""
    searched: int = 0
    """Numbers that the method searched or trained."""
    stored: int = 0
    """Parameters that it adds to the model or changes in it."""
    found: Mapping[str, float] = field(default_factory=dict)
    """Other results of the fit by name, such as the chosen learning rate."""

    def save(self, folder: str | Path) -> None:
        """Write the fitted part: a PEFT folder or a file, depending on the method."""
        self.write(Path(folder))


class Fit(Protocol):
    """A running fit: iterate to the end, then ask for the predictor."""

    def __iter__(self) -> Iterator[Progress]:
        """Fit, and yield the progress after every step."""
        ...

    def predictor(self) -> Predictor:
        """The predictor of the fit so far."""
        ...


@dataclass(frozen=True)
class NoFit:
    """The fit of a method that neither searches nor trains."""

    fitted: Predictor

    def __iter__(self) -> Iterator[Progress]:
        """Nothing to do."""
        return iter(())

    def predictor(self) -> Predictor:
        """Ready from the start."""
        return self.fitted


class Method(Protocol):
    """One row of a table, configured."""

    @property
    def seeded(self) -> bool:
        """Whether the fit depends on the split or the search's seed."""
        ...

    @property
    def budget(self) -> int:
        """The most passes over the train set, counted as in ``Step``; 0 for no fit."""
        ...

    @property
    def resumable(self) -> bool:
        """Whether an interrupted fit continues from its memo; otherwise it starts anew."""
        ...

    def check(self, architecture: Architecture) -> None:
        """Raise UserError if the configuration does not suit such a model."""
        ...

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        """The encoder of rows.

        Args:
            plain: The task's prompt, filled with the row: for most methods that is it.
            train: The few-shot train set.
            seed: The split's.

        Raises:
            UserError: The prompt, the rows or the tokenizer do not allow it.
        """
        ...

    def begin(
        self, backbone: Backbone, data: FewShotData, seed: int, memo: Memo = forgetful
    ) -> Fit:
        """Prepare a fit; the work happens during iteration.

        Args:
            backbone: The frozen model.
            data: Train and dev rows, encoded by this method's ``encoder``.
            seed: Of the fit.
            memo: Of the fit; a method that is ``resumable`` takes from it what it holds.
        """
        ...
