"""The frozen language model: what it is made of, how its layers run, what can change them.

Architecture and Checkpoint tell of a model before its weights are loaded; Backbone runs it.
Interventions are LoRA factors or soft prompts of one layer, for a whole population.
"""

from dfolora.model.architecture import Architecture
from dfolora.model.backbone import Backbone
from dfolora.model.checkpoint import Checkpoint, files_digest, folder_digest
from dfolora.model.factors import LoraFactors
from dfolora.model.families import FAMILIES
from dfolora.model.graphs import Passes, recorded
from dfolora.model.intervention import Intervention, LayerLora, SoftPrompt
from dfolora.model.kernels import exact_cudnn, no_cudnn_attention
from dfolora.model.layer import Packed
from dfolora.model.limits import Limits
from dfolora.model.packing import Pack, Sequences
from dfolora.model.peft_export import (
    check_adapter,
    load_adapter,
    load_whole_adapter,
    save_adapter,
)
from dfolora.model.preflight import file_shapes
from dfolora.model.quantize import check_torchao

__all__ = [
    "FAMILIES",
    "Architecture",
    "Backbone",
    "Checkpoint",
    "Intervention",
    "LayerLora",
    "Limits",
    "LoraFactors",
    "Pack",
    "Packed",
    "Passes",
    "Sequences",
    "SoftPrompt",
    "check_adapter",
    "check_torchao",
    "exact_cudnn",
    "file_shapes",
    "files_digest",
    "folder_digest",
    "load_adapter",
    "load_whole_adapter",
    "no_cudnn_attention",
    "recorded",
    "save_adapter",
]
