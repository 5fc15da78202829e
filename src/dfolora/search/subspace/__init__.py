"""Frozen maps from search vectors to interventions: low-rank factors, or soft prompts."""

from dfolora.search.subspace.core import CoreSubspace, CoreSubspaceSpec
from dfolora.search.subspace.grouped import Grouped
from dfolora.search.subspace.lora import LoraSubspace, LoraSubspaceSpec
from dfolora.search.subspace.parameters import ParameterSubspace, ParameterSubspaceSpec
from dfolora.search.subspace.prompt import PromptSubspace, PromptSubspaceSpec, load_soft_prompts
from dfolora.search.subspace.subspace import Subspace, SubspaceSpec

__all__ = [
    "CoreSubspace",
    "CoreSubspaceSpec",
    "Grouped",
    "LoraSubspace",
    "LoraSubspaceSpec",
    "ParameterSubspace",
    "ParameterSubspaceSpec",
    "PromptSubspace",
    "PromptSubspaceSpec",
    "Subspace",
    "SubspaceSpec",
    "load_soft_prompts",
]
