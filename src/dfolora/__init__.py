"""dfolora: the bench for tuning language models without gradients."""

import os

# Before torch and numpy are imported: elsewhere only what the user set counts. Threads that spin
# while they wait are many times slower beside CMA-ES's learners and on a shared machine, and with
# more than one thread of OpenBLAS those learners are slower too, and their bits others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from importlib.metadata import PackageNotFoundError, version

from dfolora.data import Task
from dfolora.engine import SolvedReadout
from dfolora.errors import UserError
from dfolora.fewshot import (
    FewShotClassifier,
    NotFittedError,
    Problem,
    ProblemSpec,
    TaskRows,
    fit,
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
]
