"""What the trained baselines train, and how it is put onto the frozen model and taken off."""

from dfolora.trainable.adapter import Adapter
from dfolora.trainable.base import Attached, Reader, Trainable
from dfolora.trainable.features import FeatureHead
from dfolora.trainable.lora import Lora
from dfolora.trainable.prompts import PrefixTuning, PromptTuning
from dfolora.trainable.weights import BitFit, ModelTuning

__all__ = [
    "Adapter",
    "Attached",
    "BitFit",
    "FeatureHead",
    "Lora",
    "ModelTuning",
    "PrefixTuning",
    "PromptTuning",
    "Reader",
    "Trainable",
]
