"""Frozen random maps from search vectors to interventions: low-rank factors, or soft prompts."""

from dfolora.search.subspace.grouped import Grouped
from dfolora.search.subspace.lora import LoraSubspace, LoraSubspaceSpec
from dfolora.search.subspace.prompt import PromptSubspace, PromptSubspaceSpec, load_soft_prompts
from dfolora.search.subspace.subspace import Subspace, SubspaceSpec

__all__ = [
    "Grouped",
    "LoraSubspace",
    "LoraSubspaceSpec",
    "PromptSubspace",
    "PromptSubspaceSpec",
    "Subspace",
    "SubspaceSpec",
    "load_soft_prompts",
]
