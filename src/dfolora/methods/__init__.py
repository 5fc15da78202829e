"""The rows of the tables: each method turns a backbone and a few-shot split into a predictor."""

from dfolora.methods.gap3 import Gap3
from dfolora.methods.gradient import GradientTuning, TrainingSpec
from dfolora.methods.in_context import InContext
from dfolora.methods.layerwise import LayerwiseSearch
from dfolora.methods.manual_prompt import ManualPrompt
from dfolora.methods.method import (
    FewShotData,
    Fit,
    Method,
    Past,
    Predictor,
    Progress,
    Resumable,
    Step,
)
from dfolora.methods.random_lora import RandomLora

__all__ = [
    "FewShotData",
    "Fit",
    "Gap3",
    "GradientTuning",
    "InContext",
    "LayerwiseSearch",
    "ManualPrompt",
    "Method",
    "Past",
    "Predictor",
    "Progress",
    "RandomLora",
    "Resumable",
    "Step",
    "TrainingSpec",
]
