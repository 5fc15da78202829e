"""Exports LoRA factors as a PEFT folder, with which PEFT computes the same logits."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file, save_file

from dfolora.model.backbone import Backbone
from dfolora.model.factors import LinearMap, LoraFactors, beside
from dfolora.model.intervention import LayerLora

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
        tensors[f"{PEFT_PREFIX}{path}.lora_A.weight"] = whole.down[0].T.cpu().contiguous()
        tensors[f"{PEFT_PREFIX}{path}.lora_B.weight"] = whole.up[0].T.cpu().contiguous()
        ranks[path] = whole.down.shape[-1]
    rank = max(ranks.values())
    others = {path: value for path, value in ranks.items() if value != rank}
    config = {
        "peft_type": "LORA",
        "task_type": None,
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
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load_adapter(folder: Path, backbone: Backbone) -> dict[int, LayerLora]:
    """The factors of a LoRA adapter folder by layer, for the engine: one candidate's (P = 1).

    Args:
        folder: Written by ``save_adapter``, or by PEFT for a LoRA on attention maps.
        backbone: The model that they adapt.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    layers = {}
    for index, layer in enumerate(backbone.layers):
        factors = {}
        for name, linear in layer.maps.items():
            key = f"{PEFT_PREFIX}{linear.path}.lora_%s.weight"
            if key % "A" not in tensors:
                continue
            rank = config["rank_pattern"].get(linear.path, config["r"])
            alpha = config["alpha_pattern"].get(linear.path, config["lora_alpha"])
            up = tensors[key % "B"][linear.place.columns] * (alpha / rank)
            used = up.any(0)  # a fused module has ranks of its other maps, which are 0 here
            if used.any():
                factors[name] = LoraFactors(
                    down=tensors[key % "A"][used].T[None].contiguous().to(backbone.device),
                    up=up[:, used].T[None].contiguous().to(backbone.device),
                )
        if factors:
            layers[index] = LayerLora(layer=index, factors=factors)
    return layers
