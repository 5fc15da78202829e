"""dfolora: the bench for tuning language models without gradients."""

from importlib.metadata import PackageNotFoundError, version

from dfolora.data import Task
from dfolora.errors import UserError
from dfolora.fewshot import (
    FewShotClassifier,
    NotFittedError,
    Problem,
    ProblemSpec,
    TaskRows,
    fit,
)
from dfolora.methods import Bbt, Bbtv2, CLora, FLora, LayerwiseSearch, ManualPrompt
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
    "FLora",
    "FewShotClassifier",
    "LayerwiseSearch",
    "LoraSubspaceSpec",
    "ManualPrompt",
    "NotFittedError",
    "Problem",
    "ProblemSpec",
    "Task",
    "TaskRows",
    "UserError",
    "fit",
]
