"""Maps of the class logits that are fitted beside the model, or in place of any change to it.

Letters: N examples, C classes, T train rows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dfolora.data import Batch
from dfolora.engine import Affine, Answers, Interventions, answers, classify
from dfolora.methods.probe import Probe
from dfolora.model import Backbone

READOUT = "readout.json"
"""Beside an adapter, or alone."""


class OfLogits(Protocol):
    """A fitted map of class logits alone."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Map ``(N, C)``, or a column of each label word, to ``(N, C)``, float64."""
        ...


@dataclass(frozen=True, kw_only=True)
class BatchMean:
    """Divides probabilities by their mean over the rows that are asked about together.

    Batch calibration as published (Zhou et al. 2024), where these are the test rows: transductive,
    for what is said of a row depends on the rows beside it.
    """

    def __call__(self, logits: Tensor) -> Tensor:
        """Map ``(N, C)``; a single row, whose mean is its own, stays as it is."""
        return divided(logits.double(), logits) if len(logits) > 1 else logits.double()


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The vote of the train rows whose class distributions are nearest.

    kNN prompting (Xu et al. 2023) over the label words alone, where the paper takes the whole
    vocabulary. Near is a low Kullback-Leibler divergence of the train row's distribution from the
    asked row's. Equal votes go by the asked row's own probabilities.
    """

    log_probabilities: Tensor
    """Of the train rows, ``(T, C)``."""
    labels: Tensor
    """``(T,)``."""
    neighbours: int
    """At most T."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Map ``(N, C)`` to logarithms of votes, to which the row's own opinion adds half a one."""
        asked = logits.double().log_softmax(-1)
        own = asked.exp()
        divergences = (own * asked).sum(-1, keepdim=True) - own @ self.log_probabilities.double().T
        nearest = divergences.sort(dim=-1, stable=True).indices[:, : self.neighbours]
        votes = torch.nn.functional.one_hot(self.labels.long()[nearest], logits.shape[-1]).sum(1)
        return (votes + own / 2).log()


Readout = OfLogits | Probe
"""A fitted map of class logits; a probe also has what the head reads."""


def divided(logits: Tensor, reference: Tensor) -> Tensor:
    """Logits after division of the probabilities by the mean of those of ``reference``, ``(M, C)``.

    Rows of the reference that are not finite are left out; of none, the logits stay as they are.
    """
    known = reference[reference.isfinite().all(-1)].double()
    return logits - known.softmax(-1).mean(0).log() if len(known) else logits


def applied(readout: Readout, answered: Answers) -> Tensor:
    """The logits of answers as a readout maps them: ``(N, C)``, float64."""
    if isinstance(readout, Probe):
        return readout(answered.logits, answered.states)
    return readout(answered.logits)


def class_logits(
    backbone: Backbone,
    label_ids: Tensor,
    batch: Batch,
    interventions: Interventions,
    readout: Readout | None,
) -> Tensor:
    """Of one batch, by the model with these interventions, as the readout maps them.

    Args:
        backbone: The frozen model.
        label_ids: ``(C,)`` or ``(C, W)``, the label words' token ids.
        batch: N examples.
        interventions: One candidate's.
        readout: None for the model's logits, or their mean over the words of a class. One that
            weighs words is given a column of each.

    Returns:
        ``(N, C)``, float32.
    """
    if isinstance(readout, Affine) and len(readout.weight) > len(label_ids):
        label_ids = label_ids.flatten()
    if isinstance(readout, Probe):
        return applied(readout, answers(backbone, label_ids, batch, interventions)).float()
    logits = classify(backbone, label_ids, batch, interventions)
    return logits if readout is None else readout(logits.cpu()).float()


KINDS: Mapping[str, type] = {kind.__name__: kind for kind in (Affine, BatchMean, Neighbours, Probe)}


def save_readout(folder: Path, readout: Readout) -> None:
    """Write ``readout.json``: its kind and numbers."""
    values = {field.name: getattr(readout, field.name) for field in fields(readout)}  # type: ignore[arg-type]  # all are dataclasses
    numbers = {
        name: value.tolist() if isinstance(value, Tensor) else value
        for name, value in values.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"kind": type(readout).__name__, **numbers}, indent=2)
    (folder / READOUT).write_text(text + "\n", encoding="utf-8")


def load_readout(folder: Path) -> Readout:
    """What ``save_readout`` wrote; numbers are float64."""
    stored = json.loads((folder / READOUT).read_text(encoding="utf-8"))
    kind = KINDS[stored.pop("kind")]
    values = {
        name: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
        for name, value in stored.items()
    }
    readout: Readout = kind(**values)
    return readout
