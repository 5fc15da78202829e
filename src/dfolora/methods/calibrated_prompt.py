"""The zero-shot prompt with calibrated class logits: what one call is worth, without a search.

Letters: C classes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import nan
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Batch, Encode, Encoder, Rows
from dfolora.engine import Affine, Answers, SolvedReadout, answers, cross_entropy
from dfolora.methods.method import FewShotData, Predictor, Progress
from dfolora.methods.probe import BIAS, Probe
from dfolora.methods.readouts import (
    BatchMean,
    Neighbours,
    Readout,
    applied,
    class_logits,
    divided,
    save_readout,
)
from dfolora.model import Architecture, Backbone
from dfolora.search import Memo, forgetful
from dfolora.validation import choice, whole

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Texts that say nothing (Zhao et al. 2021)."""
RIDGES = (0.001, 0.01, 0.1, 1.0)
"""Of the linear readout and the probe, from which dev chooses."""


@dataclass(frozen=True, kw_only=True)
class CalibratedPrompt:
    """Fits a map of the class logits to the train set by one call; the model stays as it is."""

    calibration: str = "bias"
    """A name in ``CALIBRATIONS``.

    - ``contextual``: probabilities divided by the mean of those of content-free inputs (Zhao et al.
      2021);
    - ``batch``: by their mean over the train rows, ``batch_test``: over the rows that are asked
      about, the test set, as published (Zhou et al. 2024);
    - ``bias``: one number a class, by the least cross-entropy on the train set;
    - ``linear``: a C x C map and a bias likewise, its ridge penalty chosen by dev cross-entropy;
    - ``probe``: an affine map of what the head reads, added to the logits, likewise;
    - ``knn``: the vote of the nearest train rows (Xu et al. 2023).
    """
    neighbours: int = 3
    """Of ``knn``."""

    seeded: ClassVar[bool] = True
    budget: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    def check(self, architecture: Architecture) -> None:
        """Every supported model will do."""
        choice(self.calibration, "calibration", CALIBRATIONS)
        whole(self.neighbours, "method.neighbours", least=1)

    def encoder(self, plain: Encoder, train: Rows, seed: int) -> Encode:
        """The prompt as it is; errors as of ``SolvedReadout.check_classes``."""
        if self.calibration in ("bias", "probe"):
            BIAS.check_classes(train.labels, len(plain.prompt.label_words))
        return plain

    def begin(
        self, backbone: Backbone, data: FewShotData, seed: int, memo: Memo = forgetful
    ) -> "Calibration":
        """Prepare it; the model is not asked yet."""
        self.check(backbone.architecture)
        return Calibration(self, backbone, data)


@dataclass(frozen=True, kw_only=True)
class OneCall:
    """The step of a fit that takes a single pass."""

    losses: NDArray[np.float64]
    """The unadapted model's, ``(1,)``."""
    loss: float
    """After the fit."""
    calls: int = 1
    step_size: float = nan


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a calibration is fitted to."""

    ask: Callable[[Batch], Answers]
    """The unadapted model's answers."""
    data: FewShotData
    train: Answers
    """Those to the train rows."""
    neighbours: int
    found: dict[str, float] = field(default_factory=dict)
    """What was chosen on the way."""


class Calibration:
    """One fit of a calibration."""

    def __init__(self, method: CalibratedPrompt, backbone: Backbone, data: FewShotData) -> None:
        self._method = method
        self._backbone = backbone
        self._data = data
        self._fitted: tuple[Readout, Asked] | None = None

    def __iter__(self) -> Iterator[Progress]:
        """Fit in one step."""
        readout, asked = self._fit()
        labels = self._data.train.labels
        before, after = (
            cross_entropy(logits[None], labels)
            for logits in (asked.train.logits, applied(readout, asked.train))
        )
        yield Progress(step=OneCall(losses=before, loss=float(after[0])), looks=(), selected=None)

    def predictor(self) -> Predictor:
        """The model with its calibrated logits."""
        readout, asked = self._fit()
        label_ids = self._data.label_ids
        return Predictor(
            logits=lambda batch: class_logits(self._backbone, label_ids, batch, {}, readout),
            write=partial(save_readout, readout=readout),
            found=asked.found,
        )

    def _fit(self) -> tuple[Readout, Asked]:
        if self._fitted is None:
            ask = partial(answers, self._backbone, self._data.label_ids)
            asked = Asked(
                ask=ask,
                data=self._data,
                train=ask(self._data.train),
                neighbours=self._method.neighbours,
            )
            self._fitted = CALIBRATIONS[self._method.calibration](asked), asked
        return self._fitted


def _contextual(asked: Asked) -> Affine:
    rows, encode = asked.data.train.rows, asked.data.encode
    if not isinstance(encode, Encoder):
        raise TypeError("Contextual calibration needs data.encode to be its own encoder.")
    fields = rows.texts[0]
    texts = tuple(dict.fromkeys(fields, text) for text in CONTENT_FREE)
    empty = replace(rows, texts=texts, labels=(0,) * len(texts))
    # A causal prompt that is the text alone has no token without one.
    written = empty.select(n for n, count in enumerate(encode.token_counts(empty)) if count)
    return _divided_by(asked.ask(encode(written)).logits)


def _batch(asked: Asked) -> Affine:
    return _divided_by(asked.train.logits)


def _divided_by(reference: Tensor) -> Affine:
    classes = reference.shape[-1]
    return Affine(
        weight=torch.zeros(classes, classes, dtype=torch.float64),
        bias=divided(torch.zeros(classes, dtype=torch.float64), reference),
    )


def _solved(asked: Asked, readout: SolvedReadout) -> Affine:
    return readout.solve(asked.train.logits[None], asked.data.train.labels)[0]


def _linear(asked: Asked) -> Readout:
    return _best_on_dev(
        asked, lambda ridge: _solved(asked, SolvedReadout(form="linear", ridge=ridge))
    )


def _probe(asked: Asked) -> Readout:
    train, labels = asked.train, asked.data.train.labels
    return _best_on_dev(asked, lambda ridge: Probe.fit(train.logits, train.states, labels, ridge))


def _best_on_dev(asked: Asked, fitted: Callable[[float], Readout]) -> Readout:
    """Of the ridges' readouts that with the least cross-entropy on dev, of equals the larger's."""
    dev = asked.data.dev
    answered, maps = asked.ask(dev), {ridge: fitted(ridge) for ridge in RIDGES}

    def rank(ridge: float) -> tuple[float, float]:
        return cross_entropy(applied(maps[ridge], answered)[None], dev.labels).item(), -ridge

    chosen = asked.found["ridge"] = min(RIDGES, key=rank)
    return maps[chosen]


def _knn(asked: Asked) -> Neighbours:
    return Neighbours(
        log_probabilities=asked.train.logits.double().log_softmax(-1),
        labels=asked.data.train.labels,
        neighbours=asked.neighbours,
    )


CALIBRATIONS: Mapping[str, Callable[[Asked], Readout]] = {
    "contextual": _contextual,
    "batch": _batch,
    "batch_test": lambda _asked: BatchMean(),
    "bias": lambda asked: _solved(asked, BIAS),
    "linear": _linear,
    "probe": _probe,
    "knn": _knn,
}
