"""The zero-shot prompt: the frozen model as it is."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from dfolora.data import Encode, Encoder, Rows
from dfolora.engine import classify
from dfolora.methods.method import FewShotData, NoFit, Predictor
from dfolora.model import Architecture, Backbone
from dfolora.search import Memo, forgetful


@dataclass(frozen=True, kw_only=True)
class ManualPrompt:
    """The method that fits nothing and sees neither train nor dev."""

    seeded: ClassVar[bool] = False
    budget: ClassVar[int] = 0
    resumable: ClassVar[bool] = False

    def check(self, architecture: Architecture) -> None:
        """Every supported model will do."""

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        """The prompt as it is."""
        return plain

    def begin(
        self, backbone: Backbone, data: FewShotData, seed: int, memo: Memo = forgetful
    ) -> NoFit:
        """Nothing to fit."""
        return NoFit(Predictor(logits=partial(classify, backbone, data.label_ids)))
