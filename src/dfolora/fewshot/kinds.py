"""The kinds of fits: what a record says of each, its files, and how it is made again."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dfolora.data import Batch, Encode, Encoder
from dfolora.engine import Interventions
from dfolora.errors import UserError, explained, first_line
from dfolora.methods import (
    LABEL_WORDS,
    CalibratedPrompt,
    Demonstrated,
    Gap3,
    GradientTuning,
    Hybrid,
    InContext,
    LayerwiseSearch,
    ManualPrompt,
    Method,
    PromptBoosting,
    RandomLora,
    Readout,
    Templates,
    class_logits,
    ensemble,
    gradient,
    load_ensemble,
    load_readout,
)
from dfolora.model import Backbone, load_adapter
from dfolora.search.subspace import PromptSubspaceSpec, load_soft_prompts

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

Logits = Callable[[Batch], Tensor]
"""Label-word logits ``(N, C)`` of an encoded batch."""

Restored = tuple[Encode, Logits]
"""The encoder and the logits that a folder restores."""

TRAINABLES = {
    kind.__name__: kind
    for kind in (
        gradient.Adapter,
        gradient.BitFit,
        gradient.FeatureHead,
        gradient.ModelTuning,
        gradient.PrefixTuning,
        gradient.PromptTuning,
    )
}
IN_PEFT = ("PrefixTuning", "PromptTuning")
"""Those of them that PEFT writes; it reads their folders too."""


def fitted_of(method: Method, encode: Encode) -> Mapping[str, Any]:
    """What a record says of a fit, beside the files that its predictor writes.

    Raises:
        UserError: No such fit can be restored.
    """
    match method:
        case ManualPrompt():
            return {"kind": "manual_prompt"}
        case InContext() if isinstance(encode, Demonstrated):
            return {"kind": "in_context", "texts": encode.texts, "added": encode.added}
        case Gap3(readout=readout):
            return {"kind": "prompt", "readout": not readout.plain}
        case PromptBoosting():
            return {"kind": "ensemble"}
        case LayerwiseSearch(subspace=subspace, words=words, budget=budget, readout=readout):
            kind = "soft_prompts" if isinstance(subspace, PromptSubspaceSpec) else "lora"
            return {
                "kind": kind, "words": words if budget else 1, "readout": not readout.plain
            }  # fmt: skip
        case CalibratedPrompt():
            return {"kind": "manual_prompt", "readout": True}
        case RandomLora() | Hybrid() | GradientTuning(trained=gradient.Lora()):
            return {"kind": "lora"}
        case GradientTuning(trained=trained) if type(trained) in TRAINABLES.values():
            name = type(trained).__name__
            return {"kind": "trained", "trained": name, "options": asdict(trained)}  # type: ignore[call-overload]  # all are dataclasses
    raise UserError(f"A classifier of {method!r} cannot be saved; use one of the methods by name.")


def files_of(fitted: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that a fit needs beside its record, of what this says of it."""
    of_kind: Mapping[str, tuple[str, ...]] = {
        "prompt": ("prompt.json",),
        "ensemble": ("ensemble.json",),
        "soft_prompts": ("soft_prompts.safetensors",),
        "lora": (CONFIG, TENSORS),
        "trained": (
            (CONFIG, TENSORS) if fitted.get("trained") in IN_PEFT else ("trained.safetensors",)
        ),
    }
    readout = ("readout.json",) * bool(fitted.get("readout"))
    words = (LABEL_WORDS,) * (fitted.get("words", 1) > 1)
    return (*of_kind.get(fitted["kind"], ()), *readout, *words)


def restore(
    folder: Path,
    fitted: Mapping[str, Any],
    backbone: Backbone,
    plain: Encoder,
    label_ids: Tensor,
) -> Restored:
    """Restore the fitted part on the model.

    Args:
        folder: With the predictor's files.
        fitted: See ``fitted_of``.
        backbone: The model that it was fitted to.
        plain: The prompt.
        label_ids: ``(C,)``.

    Raises:
        UserError: A file is missing or broken.
    """

    def adapted(encode: Encode, interventions: Interventions) -> Restored:
        def logits(batch: Batch) -> Tensor:
            return class_logits(backbone, label_ids, batch, interventions, readout)

        return encode, logits

    with reading(folder):
        readout = readout_of(folder, fitted)
        if fitted.get("words", 1) > 1:
            label_ids = torch.tensor(json.loads((folder / LABEL_WORDS).read_text(encoding="utf-8")))
        match fitted["kind"]:
            case "manual_prompt":
                return adapted(plain, {})
            case "in_context":
                return adapted(Demonstrated.of(plain, fitted["texts"], fitted["added"]), {})
            case "prompt":
                found = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
                prompt = replace(plain.prompt, pattern=found["pattern"])
                return adapted(replace(plain, prompt=prompt), {})
            case "ensemble":
                patterns, learners = load_ensemble(folder)
                encode = Templates.of(plain, patterns)
                return encode, ensemble(backbone, encode, learners, len(label_ids))
            case "soft_prompts":
                prompts = load_soft_prompts(folder, backbone)
                positions = prompts[0].vectors.shape[1]
                return adapted(PromptSubspaceSpec(positions=positions).encoder(plain), prompts)
            case "lora":
                return adapted(plain, load_adapter(folder, backbone))
            case "trained":
                trained = TRAINABLES[fitted["trained"]](**fitted["options"])
                return trained.encoder(plain), _trained(folder, trained, backbone, label_ids)
            case kind:
                raise ValueError(f"{kind!r} was fitted, which nothing here fits")


def readout_of(folder: Path, fitted: Mapping[str, Any]) -> Readout | None:
    """The fit's own map of the logits; None without one."""
    return load_readout(folder) if fitted.get("readout") else None


def reading(folder: Path) -> AbstractContextManager[None]:
    """Within, a file that cannot be read is told."""
    return explained(
        lambda error: f"{folder} holds no whole classifier ({first_line(error)}); copy it again."
    )


def _trained(
    folder: Path, trained: gradient.Trainable, backbone: Backbone, label_ids: Tensor
) -> Logits:
    file = "adapter_model" if type(trained).__name__ in IN_PEFT else "trained"
    tensors = load_file(folder / f"{file}.safetensors")

    def logits(batch: Batch) -> Tensor:
        with trained.attached(backbone, label_ids, 0) as attached, torch.no_grad():
            for name, parameter in attached.parameters.items():
                # PEFT's prompts are one tensor, which it saves by another name.
                (tensor,) = tensors.values() if len(tensors) == 1 else (tensors[name],)
                parameter.copy_(tensor)
            return gradient.all_logits(gradient.readers(attached, batch, backbone.tokens))

    return logits
