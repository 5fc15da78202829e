"""Methods, one per row of the tables: a backbone and few-shot data to a predictor."""

from dfolora.methods.adapted import LABEL_WORDS
from dfolora.methods.calibrated_prompt import CalibratedPrompt
from dfolora.methods.gap3 import Gap3
from dfolora.methods.gradient import GradientTuning, Hybrid, TrainingSpec
from dfolora.methods.in_context import Demonstrated, InContext
from dfolora.methods.layerwise import LayerwiseSearch
from dfolora.methods.manual_prompt import ManualPrompt
from dfolora.methods.method import (
    FewShotData,
    Fit,
    Method,
    Predictor,
    Progress,
    Step,
)
from dfolora.methods.named import METHODS, Bbt, Bbtv2, CLora, FLora, method_of, written
from dfolora.methods.prompt_boosting import (
    PromptBoosting,
    Templates,
    ensemble,
    load_ensemble,
)
from dfolora.methods.random_lora import RandomLora
from dfolora.methods.readouts import BatchMean, Readout, class_logits, load_readout

__all__ = [
    "LABEL_WORDS",
    "METHODS",
    "BatchMean",
    "Bbt",
    "Bbtv2",
    "CLora",
    "CalibratedPrompt",
    "Demonstrated",
    "FLora",
    "FewShotData",
    "Fit",
    "Gap3",
    "GradientTuning",
    "Hybrid",
    "InContext",
    "LayerwiseSearch",
    "ManualPrompt",
    "Method",
    "Predictor",
    "Progress",
    "PromptBoosting",
    "RandomLora",
    "Readout",
    "Step",
    "Templates",
    "TrainingSpec",
    "class_logits",
    "ensemble",
    "load_ensemble",
    "load_readout",
    "method_of",
    "written",
]
