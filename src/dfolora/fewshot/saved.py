"""A fitted classifier as a folder: what was fitted, and `classifier.json` beside it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dfolora.data import Batch, Encode, Encoder
from dfolora.engine import Interventions, classify
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
    Templates,
    ensemble,
    gradient,
    load_ensemble,
    load_readout,
    mapped,
)
from dfolora.model import Backbone, load_adapter
from dfolora.search.subspace import PromptSubspaceSpec, load_soft_prompts
from dfolora.validation import check_keys, mapping

RECORD = "classifier.json"
FORMAT = 1
KEYS = (
    *("format", "versions", "model", "tokenizer", "weights"),
    *("prompt", "classes", "words", "fitted", "settings"),
)
PACKAGES = ("dfolora", "torch", "transformers", "peft")
SAMPLE = 64
"""Numbers of each parameter that tell a model."""

Logits = Callable[[Batch], Tensor]
"""Label-word logits ``(N, C)`` of an encoded batch."""

Restored = tuple[Encode, Logits]
"""The encoder and the logits that a folder restores."""


def versions() -> Mapping[str, str | None]:
    """Of the packages that predictions depend on."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def weights_digest(model: Any) -> str:
    """SHA-256 of some numbers of each parameter, the same in float32 as in bfloat16."""
    digest = sha256()
    for name, weight in model.named_parameters():
        if type(weight) is nn.Parameter:  # an 8-bit weight is of a type of torchao's
            flat = weight.detach().flatten()
            some = flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].to("cpu", torch.bfloat16)
            digest.update(f"{name} {tuple(weight.shape)}\n".encode())
            digest.update(some.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


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


def read_record(folder: Path) -> Mapping[str, Any]:
    """The record of a folder.

    Raises:
        UserError: There is none, or none that this version reads.
    """
    path = folder / RECORD

    def unread(error: Exception) -> str:
        return f"{folder} holds no classifier: {first_line(error)}. Give a folder that save wrote."

    with explained(unread):
        record = mapping(json.loads(path.read_text(encoding="utf-8")), str(path))
    check_keys(record, str(path), required=KEYS)
    if record["format"] != FORMAT:
        raise UserError(
            f"{path} has format {record['format']!r}, this version of dfolora reads {FORMAT}; it "
            f"was written by dfolora {record['versions'].get('dfolora')}: install that."
        )
    return record


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write it beside what was fitted."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def copy_folder(folder: Path, target: Path) -> None:
    """What ``save`` means for a classifier that was loaded."""
    if target.resolve() != folder.resolve():
        copytree(folder, target, dirs_exist_ok=True)


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
            return mapped(classify(backbone, label_ids, batch, interventions), readout)

        return encode, logits

    def broken(error: Exception) -> str:
        return f"{folder} holds no whole classifier ({first_line(error)}); copy it again."

    with explained(broken):
        readout = load_readout(folder) if fitted.get("readout") else None
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


def _trained(
    folder: Path, trained: gradient.Trainable, backbone: Backbone, label_ids: Tensor
) -> Logits:
    in_peft = isinstance(trained, gradient.PrefixTuning | gradient.PromptTuning)
    tensors = load_file(folder / (f"{'adapter_model' if in_peft else 'trained'}.safetensors"))

    def logits(batch: Batch) -> Tensor:
        with trained.attached(backbone, label_ids, 0) as attached, torch.no_grad():
            for name, parameter in attached.parameters.items():
                # PEFT's prompts are one tensor, which it saves by another name.
                (tensor,) = tensors.values() if len(tensors) == 1 else (tensors[name],)
                parameter.copy_(tensor)
            return gradient.all_logits(gradient.readers(attached, batch, backbone.tokens))

    return logits
