"""The trained baselines: one training loop, and what each of them trains.

A Trainable is attached to the frozen model within a context, and taken off again after it.
"""

from dfolora.methods.gradient.adapter import Adapter
from dfolora.methods.gradient.features import FeatureHead
from dfolora.methods.gradient.hybrid import Hybrid
from dfolora.methods.gradient.lora import Lora
from dfolora.methods.gradient.prompts import PrefixTuning, PromptTuning
from dfolora.methods.gradient.trainable import Attached, Reader, Trainable
from dfolora.methods.gradient.training import TrainingSpec, all_logits, readers
from dfolora.methods.gradient.tuning import GradientTuning
from dfolora.methods.gradient.weights import BitFit, ModelTuning

__all__ = [
    "Adapter",
    "Attached",
    "BitFit",
    "FeatureHead",
    "GradientTuning",
    "Hybrid",
    "Lora",
    "ModelTuning",
    "PrefixTuning",
    "PromptTuning",
    "Reader",
    "Trainable",
    "TrainingSpec",
    "all_logits",
    "readers",
]
