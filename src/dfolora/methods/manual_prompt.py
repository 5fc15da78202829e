"""The zero-shot prompt: the frozen model as it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dfolora.architecture import Architecture
from dfolora.backbone import Backbone
from dfolora.data.encode import Batch
from dfolora.evaluate import batch_logits
from dfolora.methods.base import FewShotData, Progress
from dfolora.select import DevPoint


@dataclass(frozen=True, kw_only=True)
class ManualPrompt:
    """A method that fits nothing; it sees neither train nor dev."""

    tokens: int = 1024
    """At most so many tokens, padding included, go through the model at once."""

    @property
    def seeded(self) -> bool:
        """See ``Method``."""
        return False

    def check(self, architecture: Architecture) -> None:
        """Every supported model will do."""

    def begin(self, backbone: Backbone, data: FewShotData, seed: int) -> "ZeroShot":
        """See ``Method``."""
        return ZeroShot(backbone, data.label_ids, tokens=self.tokens)


class ZeroShot:
    """Both the fit, which takes no step, and the predictor."""

    dev: DevPoint | None = None
    searched = 0
    stored = 0

    def __init__(self, backbone: Backbone, label_ids: Tensor, *, tokens: int) -> None:
        self._backbone = backbone
        self._label_ids = label_ids
        self._tokens = tokens

    def __iter__(self) -> Iterator[Progress]:
        """See ``Fit``."""
        return iter(())

    def predictor(self) -> "ZeroShot":
        """See ``Fit``."""
        return self

    def logits(self, batch: Batch) -> Tensor:
        """See ``Predictor``."""
        return batch_logits(self._backbone, batch, self._label_ids, tokens=self._tokens)[0]

    def save(self, folder: str | Path) -> None:
        """Nothing was fitted."""
