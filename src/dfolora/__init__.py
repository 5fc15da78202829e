"""dfolora: the bench for tuning language models without gradients."""

import logging
import os

# Before torch and numpy are imported: elsewhere only what the user set counts. Threads that spin
# while they wait are many times slower beside CMA-ES's learners and on a shared machine, and with
# more than one thread of OpenBLAS those learners are slower too, and their bits others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# transformers imports torchao wherever it is, which warns of kernels for other machines.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dfolora.data import Task, tasks
from dfolora.engine import SolvedReadout
from dfolora.errors import UserError, installed
from dfolora.fewshot import (
    FewShotClassifier,
    NotFittedError,
    Problem,
    ProblemSpec,
    TaskRows,
    fit,
    push,
)
from dfolora.methods import (
    Bbt,
    Bbtv2,
    CalibratedPrompt,
    CLora,
    FLora,
    LayerwiseSearch,
    ManualPrompt,
)
from dfolora.model import Backbone
from dfolora.search.subspace import LoraSubspaceSpec

try:
    __version__ = version("dfolora")
except PackageNotFoundError:  # the source folder alone, on a machine where nothing was installed
    __version__ = "unknown"
__all__ = [
    "Backbone",
    "Bbt",
    "Bbtv2",
    "CLora",
    "CalibratedPrompt",
    "FLora",
    "FewShotClassifier",
    "LayerwiseSearch",
    "LoraSubspaceSpec",
    "ManualPrompt",
    "NotFittedError",
    "Problem",
    "ProblemSpec",
    "SolvedReadout",
    "Task",
    "TaskRows",
    "UserError",
    "fit",
    "load",
    "push",
    "tasks",
]


def load(
    place: str | Path,
    *,
    model: Any = None,
    tokenizer: Any = None,
    device: str = "auto",
    tracking_uri: str | None = None,
) -> FewShotClassifier:
    """What was fitted, ready to predict: a classifier with ``predict`` and ``predict_proba``.

    Args:
        place: A folder that ``FewShotClassifier.save`` or a run wrote, or a run's id.
        model: The model that it was fitted to, as for ``FewShotClassifier``; None: where it was
            then.
        tokenizer: As for ``FewShotClassifier``.
        device: As for ``FewShotClassifier``.
        tracking_uri: The store of the run; None for ``MLFLOW_TRACKING_URI``, else
            ``sqlite:///mlflow.db``.

    Returns:
        Its ``classes_`` are a run's in the order of its task.

    Raises:
        UserError: There is no such folder or run, it is not whole, or the model, the tokenizer or
            the task are others.
    """
    if not Path(place).is_dir():
        with installed("pipelines"):
            from dfolora.record import Store

            before = f"There is no folder {place}. "
            place = Store.existing(tracking_uri).fitted(str(place), before=before)
    return FewShotClassifier.load(place, model=model, tokenizer=tokenizer, device=device)
