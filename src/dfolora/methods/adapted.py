"""The model with what a search found, as a predictor that can be saved."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfolora.data import Batch
from dfolora.engine import Affine
from dfolora.methods.method import Predictor
from dfolora.methods.readouts import class_logits, save_readout
from dfolora.model import Backbone
from dfolora.search import DevPoint
from dfolora.search.subspace import Subspace

LABEL_WORDS = "label_words.json"
"""Beside an adapter: the tokens of each class, if they are not the task's label words alone."""


def adapted(
    backbone: Backbone,
    label_ids: Tensor,
    subspace: Subspace,
    solution: NDArray[np.float64],
    *,
    readout: Affine | None = None,
    dev: DevPoint | None = None,
    searched: int = 0,
) -> Predictor:
    """The model with one solution's interventions.

    Args:
        backbone: The frozen model.
        label_ids: ``(C,)`` or ``(C, W)``, the label words' token ids.
        subspace: Search vectors to interventions.
        solution: ``(L, d)``.
        readout: Of the logits; None for them as they are.
        dev: The look at dev that chose it; None for one that nobody searched.
        searched: Numbers that were searched for it.
    """

    def write(folder: Path) -> None:
        subspace.save(folder, backbone, solution)
        if label_ids.ndim > 1:
            (folder / LABEL_WORDS).write_text(json.dumps(label_ids.tolist()) + "\n")
        if readout is not None:
            save_readout(folder, readout)

    def logits(batch: Batch) -> Tensor:
        return class_logits(backbone, label_ids, batch, subspace.incumbents(solution), readout)

    return Predictor(
        logits=logits,
        write=write,
        dev=dev,
        searched=searched,
        stored=subspace.stored,
        found=subspace.found(solution),
    )
