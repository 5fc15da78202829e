"""The rows of the tables: each method turns a backbone and a few-shot split into a predictor."""

from dfolora.methods.base import FewShotData, Fit, Method, Predictor, Progress, Step
from dfolora.methods.gap3 import Gap3
from dfolora.methods.in_context import InContext
from dfolora.methods.layerwise import LayerwiseSearch
from dfolora.methods.manual_prompt import ManualPrompt

__all__ = [
    "FewShotData",
    "Fit",
    "Gap3",
    "InContext",
    "LayerwiseSearch",
    "ManualPrompt",
    "Method",
    "Predictor",
    "Progress",
    "Step",
]
