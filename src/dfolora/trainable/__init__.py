"""What the trained baselines train, and how it is put onto the frozen model and taken off."""

from dfolora.trainable.base import Attached, Reader, Trainable
from dfolora.trainable.features import FeatureHead
from dfolora.trainable.lora import Lora

__all__ = ["Attached", "FeatureHead", "Lora", "Reader", "Trainable"]
