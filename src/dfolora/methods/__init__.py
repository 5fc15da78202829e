"""The rows of the tables: each method turns a backbone and a few-shot split into a predictor."""

from dfolora.methods.base import FewShotData, Fit, Method, Predictor, Progress
from dfolora.methods.dfo_lora import DfoLora
from dfolora.methods.manual_prompt import ManualPrompt

__all__ = ["DfoLora", "FewShotData", "Fit", "ManualPrompt", "Method", "Predictor", "Progress"]
