"""Frozen maps from search vectors to interventions: low-rank factors, or soft prompts."""

from dfolora.search.subspace.composed import ComposedSubspaceSpec
from dfolora.search.subspace.core import CoreSubspace, CoreSubspaceSpec
from dfolora.search.subspace.gains import GainSubspaceSpec
from dfolora.search.subspace.grouped import Grouped
from dfolora.search.subspace.joint import JointSubspace
from dfolora.search.subspace.lora import LoraSubspace, LoraSubspaceSpec
from dfolora.search.subspace.parameters import ParameterSubspace, ParameterSubspaceSpec
from dfolora.search.subspace.prompt import PromptSubspace, PromptSubspaceSpec, load_soft_prompts
from dfolora.search.subspace.subspace import Subspace, SubspaceSpec
from dfolora.search.subspace.uni_lora import UniLoraSubspaceSpec

__all__ = [
    "ComposedSubspaceSpec",
    "CoreSubspace",
    "CoreSubspaceSpec",
    "GainSubspaceSpec",
    "Grouped",
    "JointSubspace",
    "LoraSubspace",
    "LoraSubspaceSpec",
    "ParameterSubspace",
    "ParameterSubspaceSpec",
    "PromptSubspace",
    "PromptSubspaceSpec",
    "Subspace",
    "SubspaceSpec",
    "UniLoraSubspaceSpec",
    "load_soft_prompts",
]
