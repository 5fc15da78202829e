"""dfolora: the bench for tuning language models without gradients."""

from importlib.metadata import PackageNotFoundError, version

from dfolora.backbone import Backbone
from dfolora.errors import UserError
from dfolora.fitting import fit
from dfolora.methods import LayerwiseSearch, ManualPrompt
from dfolora.problem import Problem, ProblemSpec, TaskRows
from dfolora.subspace import LoraSubspaceSpec
from dfolora.task import Task

try:
    __version__ = version("dfolora")
except PackageNotFoundError:  # the source folder alone, on a machine where nothing was installed
    __version__ = "unknown"
__all__ = [
    "Backbone",
    "LayerwiseSearch",
    "LoraSubspaceSpec",
    "ManualPrompt",
    "Problem",
    "ProblemSpec",
    "Task",
    "TaskRows",
    "UserError",
    "fit",
]
