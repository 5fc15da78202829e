"""LoRA factors as PEFT folders, written and read; PEFT computes the same logits with them."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import sqrt
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from dfolora.errors import UserError, explained, first_line
from dfolora.model.architecture import Architecture
from dfolora.model.backbone import Backbone
from dfolora.model.factors import LinearMap, LoraFactors, beside
from dfolora.model.intervention import LayerLora
from dfolora.model.preflight import file_shapes
from dfolora.validation import mapping

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


def save_adapter(folder: Path, backbone: Backbone, layers: Iterable[LayerLora]) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    Maps of one fused module, as in GPT-2, become one PEFT module whose rank is the sum of theirs.
    B includes the scaling, so PEFT's scaling is 1 (``lora_alpha`` equals the rank).

    Args:
        folder: Created if missing.
        backbone: The adapted model.
        layers: One candidate's factors (P = 1) for each adapted layer.
    """
    modules: dict[str, list[tuple[LinearMap, LoraFactors]]] = defaultdict(list)
    for lora in layers:
        for name, factors in lora.factors.items():
            linear = backbone.layers[lora.layer].maps[name]
            modules[linear.path].append((linear, factors))
    tensors = {}
    ranks = {}
    for path, parts in modules.items():
        whole = beside(parts)
        key_a, key_b = _keys(path)
        tensors[key_a] = whole.down[0].T.cpu().contiguous()
        tensors[key_b] = whole.up[0].T.cpu().contiguous()
        ranks[path] = whole.down.shape[-1]
    rank = max(ranks.values())
    others = {path: value for path, value in ranks.items() if value != rank}
    config = {
        "peft_type": "LORA",
        # By which PEFT's classes find the head; it has no word for masked models.
        "task_type": "CAUSAL_LM" if backbone.architecture.family.kind == "causal" else None,
        "base_model_name_or_path": backbone.model.name_or_path or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": backbone.architecture.family.input_first,
        "target_modules": sorted(modules),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})


def check_adapter(folder: Path, architecture: Architecture) -> dict[str, int]:
    """The rank of each module that an adapter changes, by its dotted name in the model.

    Only the adapter's configuration and the header of its tensors are read.

    Raises:
        UserError: It is no LoRA on the attention maps of such a model.
    """
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} holds no {name}; give a folder that PEFT's save_pretrained or a run of "
                f"dfolora has written."
            )
    if (kind := _config(folder).get("peft_type")) != "LORA":
        raise UserError(f"The adapter {folder} is of type {kind}; give one of LoRA (LORA).")
    held = file_shapes(folder / TENSORS)
    modules = {
        f"{architecture.family.layers}.{layer}.{place.module}": place
        for layer in range(architecture.layers)
        for place in architecture.maps.values()
    }
    known = {key for path in modules for key in _keys(path)}
    if others := sorted(held.keys() - known):
        raise UserError(
            f"The adapter {folder} holds {len(others)} tensors that are no A and B of the model's "
            f"attention maps ({others[0]}, ...); these are named {min(known)} and alike. Give an "
            f"adapter of this model, and one that changes its attention maps alone."
        )
    ranks = {}
    for path, place in modules.items():
        a, b = (held.get(key, ()) for key in _keys(path))
        if not a and not b:
            continue
        rank = a[0] if a else b[-1]
        if (a, b) != ((rank, place.d_in), (place.d_module, rank)):
            raise UserError(
                f"The adapter {folder} has A of shape {a} and B of shape {b} for {path}, which "
                f"takes (r, {place.d_in}) and ({place.d_module}, r): it is of another model. Give "
                f"one of this model."
            )
        ranks[path] = rank
    if not ranks:
        raise UserError(f"The adapter {folder} holds no tensor; save it again.")
    return ranks


def load_adapter(folder: Path, backbone: Backbone) -> dict[int, LayerLora]:
    """The factors of a LoRA adapter folder by layer, for the engine: one candidate's (P = 1).

    Ranks that change nothing are left out.

    Args:
        folder: Written by ``save_adapter``, or by PEFT for a LoRA on attention maps.
        backbone: The model that they adapt.
    """
    layers = {}
    for index, lora in load_whole_adapter(folder, backbone).items():
        factors = {}
        for name, whole in lora.factors.items():
            # A fused module has ranks of its other maps, which are 0 here.
            used = whole.up[0].any(1)
            if used.any():
                factors[name] = LoraFactors(down=whole.down[..., used], up=whole.up[:, used])
        if factors:
            layers[index] = LayerLora(layer=index, factors=factors)
    return layers


def load_whole_adapter(folder: Path, backbone: Backbone) -> dict[int, LayerLora]:
    """As ``load_adapter``, with all ranks; maps of one fused module have the same A."""
    config = _config(folder)
    tensors = load_file(folder / TENSORS)
    layers = {}
    for index, layer in enumerate(backbone.layers):
        factors = {}
        for name, linear in layer.maps.items():
            key_a, key_b = _keys(linear.path)
            if key_a not in tensors:
                continue
            down = tensors[key_a].float()
            up = tensors[key_b].float()[linear.place.columns]
            factors[name] = LoraFactors(
                down=down.T[None].contiguous().to(backbone.device),
                up=(up * _scaling(config, linear.path, len(down))).T[None].to(backbone.device),
            )
        if factors:
            layers[index] = LayerLora(layer=index, factors=factors)
    return layers


def _keys(path: str) -> tuple[str, str]:
    """The names of a module's A and B in the file."""
    return f"{PEFT_PREFIX}{path}.lora_A.weight", f"{PEFT_PREFIX}{path}.lora_B.weight"


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    with explained(lambda error: f"{path} cannot be read: {first_line(error)}; copy it again."):
        return mapping(json.loads(path.read_text(encoding="utf-8")), str(path))


def _scaling(config: Mapping[str, Any], path: str, rank: int) -> float:
    """PEFT's factor on a module's product: alpha / r, or alpha / sqrt(r) with ``use_rslora``."""
    patterns = config.get("alpha_pattern") or {}
    # PEFT's rule: the first pattern that is the name, or its end from a dot on.
    found = (patterns[key] for key in patterns if re.fullmatch(rf"(.*\.)?({key})", path))
    alpha: float = next(found, config["lora_alpha"])
    return alpha / (sqrt(rank) if config.get("use_rslora") else rank)
