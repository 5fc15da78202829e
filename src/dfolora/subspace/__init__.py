"""Frozen random maps from search vectors to interventions: low-rank factors, or soft prompts."""

from dfolora.subspace.base import Subspace, SubspaceSpec
from dfolora.subspace.lora import LoraSubspace, LoraSubspaceSpec
from dfolora.subspace.prompt import PromptSubspace, PromptSubspaceSpec

__all__ = [
    "LoraSubspace",
    "LoraSubspaceSpec",
    "PromptSubspace",
    "PromptSubspaceSpec",
    "Subspace",
    "SubspaceSpec",
]
