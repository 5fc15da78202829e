"""What every method, searched or trained or neither, gives the harness."""

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
    """All that a method may see of a task: never the test set."""

    train: Batch
    dev: Batch
    """Both encoded by the method's own ``encoder``, as the test set is."""
    label_ids: Tensor
    """Token ids of the label words: ``(C,)``."""
    metric: str
    encode: Encode | None = None
    """The method's ``encoder``; None where batches were made of bare tokens."""


class Step(Protocol):
    """A generation of a search, or an epoch of a training."""

    @property
    def calls(self) -> int:
        """Passes over the train set so far; one with a backward pass counts as three."""
        ...

    @property
    def losses(self) -> NDArray[np.float64]:
        """Of the candidates or minibatches of this step, ``(P,)``; inf for what is no number."""
        ...

    @property
    def loss(self) -> float:
        """Of the train set as the step ends, or of an epoch as it goes; nan where nobody knows."""
        ...

    @property
    def step_size(self) -> float:
        """An optimizer's sigma or amplitude, a learning rate; nan where there is none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step, and what the dev set says."""

    step: Step
    looks: Sequence[DevPoint]
    """The looks at the dev set that this step brought, mostly none."""
    selected: DevPoint | None
    """The best look so far."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A fitted method."""

    logits: Callable[[Batch], Tensor]
    """Label-word logits, ``(N, C)``, float32, of a batch encoded as train and dev were."""
    write: Callable[[Path], None] = lambda _folder: None
    """Writes to a folder what was fitted; nothing for a method that fits nothing."""
    dev: DevPoint | None = None
    """The look at the dev set that selected it; None for a method that selects nothing."""
    searched: int = 0
    """Numbers that the method searched or trained."""
    stored: int = 0
    """Parameters that it adds to the model or changes in it."""
    found: Mapping[str, float] = field(default_factory=dict)
    """What else is worth knowing of the fit, by name: a chosen learning rate, for example."""

    def save(self, folder: str | Path) -> None:
        """Write what was fitted: a PEFT adapter folder or a file, by the method."""
        self.write(Path(folder))


class Fit(Protocol):
    """A method at work: iterate to the end, then ask for the predictor."""

    def __iter__(self) -> Iterator[Progress]:
        """Work, and tell after every step how it goes."""
        ...

    def predictor(self) -> Predictor:
        """What was fitted so far."""
        ...


@dataclass(frozen=True)
class NoFit:
    """The ``Fit`` of a method that neither searches nor trains: it takes no step."""

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
        """Whether what is fitted depends on the split or the search's seed."""
        ...

    @property
    def budget(self) -> int:
        """At most so many passes over the train set, counted as in ``Step``; 0 for no fit."""
        ...

    @property
    def resumable(self) -> bool:
        """Whether a fit goes on from its memo where it was broken off; else it begins anew."""
        ...

    def check(self, architecture: Architecture) -> None:
        """Raise UserError if the configuration makes no sense for such a model."""
        ...

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        """How rows are put to the model.

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
        """Get ready to fit; the work happens as the result is iterated.

        Args:
            backbone: The frozen model.
            data: Train and dev rows, encoded by this method's ``encoder``.
            seed: Of the fit.
            memo: Of the fit; a method that is ``resumable`` takes from it what it holds.
        """
        ...
