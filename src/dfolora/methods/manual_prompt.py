"""The zero-shot prompt: the frozen model as it is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from dfolora.data import Batch, Encode, Encoder, Rows
from dfolora.engine import Engine, Limits
from dfolora.methods.method import FewShotData, Progress
from dfolora.model import Architecture, Backbone
from dfolora.search import DevPoint


@dataclass(frozen=True, kw_only=True)
class ManualPrompt:
    """A method that fits nothing; it sees neither train nor dev."""

    limits: Limits = field(default_factory=Limits)
    """How much goes through the model at once."""

    @property
    def seeded(self) -> bool:
        """See ``Method``."""
        return False

    @property
    def budget(self) -> int:
        """See ``Method``."""
        return 0

    def check(self, architecture: Architecture) -> None:
        """Every supported model will do."""
        self.limits.check()

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        """See ``Method``."""
        return plain

    def begin(self, backbone: Backbone, data: FewShotData, seed: int) -> "ZeroShot":
        """See ``Method``."""
        return ZeroShot(backbone, data.label_ids, self.limits)


class ZeroShot:
    """Both the fit, which takes no step, and the predictor."""

    dev: DevPoint | None = None
    searched = 0
    stored = 0
    found: Mapping[str, float] = {}

    def __init__(self, backbone: Backbone, label_ids: Tensor, limits: Limits) -> None:
        self._backbone = backbone
        self._label_ids = label_ids
        self._limits = limits

    def __iter__(self) -> Iterator[Progress]:
        """See ``Fit``."""
        return iter(())

    def predictor(self) -> "ZeroShot":
        """See ``Fit``."""
        return self

    def logits(self, batch: Batch) -> Tensor:
        """See ``Predictor``."""
        engine = Engine(self._backbone, batch, self._label_ids, self._limits, carry=False)
        return engine({})[0]

    def save(self, folder: str | Path) -> None:
        """Nothing was fitted."""
