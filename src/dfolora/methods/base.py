"""What every method, searched or trained or neither, gives the harness."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from dfolora.architecture import Architecture
from dfolora.backbone import Backbone
from dfolora.data.encode import Batch
from dfolora.select import DevPoint
from dfolora.tune import Generation


@dataclass(frozen=True, kw_only=True)
class FewShotData:
    """All that a method may see of a task: never the test set."""

    train: Batch
    dev: Batch
    label_ids: Tensor
    """Token ids of the label words: ``(C,)``."""
    metric: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One generation, and what the dev set says."""

    generation: Generation
    looks: Sequence[DevPoint]
    """The looks at the dev set that this generation brought, mostly none."""
    selected: DevPoint | None
    """The best look so far."""


class Predictor(Protocol):
    """A fitted method."""

    dev: DevPoint | None
    """The look at the dev set that selected it; None for a method that selects nothing."""
    searched: int
    """Numbers that the method searched or trained."""
    stored: int
    """Parameters that it adds to the model."""

    def logits(self, batch: Batch) -> Tensor:
        """Label-word logits, ``(N, C)``, float32."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write what was fitted; nothing for a method that fits nothing."""
        ...


class Fit(Protocol):
    """A method at work: iterate to the end, then ask for the predictor."""

    def __iter__(self) -> Iterator[Progress]:
        """Work, and tell after every generation how it goes."""
        ...

    def predictor(self) -> Predictor:
        """What was fitted so far."""
        ...


class Method(Protocol):
    """One row of a table, configured."""

    @property
    def seeded(self) -> bool:
        """Whether what is fitted depends on the split or the search's seed."""
        ...

    def check(self, architecture: Architecture) -> None:
        """Raise UserError if the configuration makes no sense for such a model."""
        ...

    def begin(self, backbone: Backbone, data: FewShotData, seed: int) -> Fit:
        """Get ready to fit; the work happens as the result is iterated."""
        ...
