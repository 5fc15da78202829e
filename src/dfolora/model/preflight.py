"""Checks a model's weights before they are loaded, from sizes and file headers."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from dfolora.data import Kind
from dfolora.errors import UserError, explained, first_line
from dfolora.model.architecture import Architecture
from dfolora.model.families import Family
from dfolora.resources import check_room

Shape = tuple[int, ...]
NO_WEIGHTS = re.compile(
    r"\.(attn|attn\.attention|attention)\.(masked_)?bias$|\.rotary_emb\.inv_freq$"
)
"""Masks and constants that older versions of transformers saved with the weights."""


def loader_of(config: Any) -> Any:
    """The ``transformers`` class that builds a configuration's model, with its vocabulary head."""
    loaders: Mapping[Kind, Any] = {
        "masked": transformers.AutoModelForMaskedLM,
        "causal": transformers.AutoModelForCausalLM,
    }
    return loaders[Architecture.of(config).family.kind]


def described(architecture: Mapping[str, Any]) -> Any:
    """Build the configuration that ``model.architecture`` describes.

    Args:
        architecture: Its values, with a ``model_type``.

    Raises:
        UserError: ``transformers`` knows no such model.
    """
    with explained(
        lambda error: f"model.architecture describes no model: {first_line(error)} See conf/model/."
    ):
        return transformers.AutoConfig.for_model(**architecture)


def expected_shapes(config: Any, where: str) -> Mapping[str, Shape]:
    """The name and shape of every tensor of a model, without allocating it.

    Args:
        config: The model's ``transformers`` configuration.
        where: The configuration's origin, for messages.

    Raises:
        UserError: No such model can be built, or it needs more memory than the machine has.
    """
    architecture = Architecture.of(config)
    layers = architecture.layers * architecture.layer_numbers
    numbers = layers + config.vocab_size * architecture.width
    check_room(2 * numbers, f"The model of {where}", "choose a smaller one")
    with (
        explained(lambda error: f"No model can be made of {where}: {error}; correct it."),
        torch.device("meta"),
    ):
        model = loader_of(config).from_config(
            config, attn_implementation=architecture.padded_attention, trust_remote_code=False
        )
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_files(folder: Path, expected: Mapping[str, Shape], family: Family) -> None:
    """Raise UserError unless a folder's weights can be read and are those of the model's layers.

    Other missing tensors are the loader's to report.

    Args:
        folder: The model's folder, with ``config.json``.
        expected: From ``expected_shapes``.
        family: The model's.
    """
    files = _weights(folder)
    if not files:
        others = sorted(path.name for end in ("bin", "gguf") for path in folder.glob(f"*.{end}"))
        beside = f" but {', '.join(others)}, and no pickle and no GGUF is read" if others else ""
        raise UserError(
            f"{folder} holds no *.safetensors{beside}; load the model where it comes from, "
            f"save_pretrained it, and copy that folder."
        )
    held = {name: (path, shape) for path in files for name, shape in file_shapes(path).items()}
    _check_prefix(folder, held, expected, family)
    check_names(str(folder), held, expected, family)
    for name, (path, shape) in held.items():
        wanted = expected.get(name, expected.get(f"{family.prefix}.{name}", shape))
        if shape != wanted:
            raise UserError(
                f"{path} holds {name} of shape {shape}, the model of config.json has {wanted}: "
                f"they are of two models. Copy both from one."
            )


def check_names(where: str, held: Iterable[str], expected: Iterable[str], family: Family) -> None:
    """Raise UserError if weights hold tensors of layers that the model does not have.

    Heads that the model does not have are harmless.

    Args:
        where: The weights' place, for messages.
        held: The tensors' names.
        expected: Those of the model.
        family: The model's.
    """
    known = _known(expected, family)
    layers = (f"{family.layers}.", f"{family.layers.removeprefix(f'{family.prefix}.')}.")
    unused = [
        name
        for name in held
        if name.startswith(layers)
        and re.sub(r"gamma$", "weight", re.sub(r"beta$", "bias", name)) not in known
        and not NO_WEIGHTS.search(name)
    ]
    if unused:
        raise UserError(
            f"{where} holds {len(unused)} tensors of layers that the model of config.json lacks "
            f"({', '.join(sorted(unused)[:2])}, ...): they are of two models, or more was saved "
            f"than the model. Copy both from one, or save the model alone."
        )


def _known(expected: Iterable[str], family: Family) -> set[str]:
    """Names of the model's tensors, in files with its head and in those without."""
    return {*expected, *(name.removeprefix(f"{family.prefix}.") for name in expected)}


def _weights(folder: Path) -> list[Path]:
    """The files that transformers reads, where others may lie beside them."""
    whole, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if whole.exists():
        return [whole]
    if index.exists():
        with explained(lambda error: f"{index} cannot be read: {error}; copy it again."):
            names = {*json.loads(index.read_text())["weight_map"].values()}
        return sorted(folder / name for name in names)
    return sorted(folder.glob("*.safetensors"))


def _check_prefix(
    folder: Path, held: Iterable[str], expected: Iterable[str], family: Family
) -> None:
    """Raise UserError if it is only a prefix by which all names differ from the model's."""
    known = _known(expected, family)
    names = sorted(held)
    prefix, dot, _rest = names[0].partition(".")
    if (
        dot
        and not known.intersection(names)
        and all(name.startswith(f"{prefix}.") for name in names)
        and known.intersection(name.removeprefix(f"{prefix}.") for name in names)
    ):
        raise UserError(
            f"The names of all tensors in {folder} begin with {prefix}., as a compiled or wrapped "
            f"model's do; without it they are those of config.json's model. Save the model that is "
            f"within."
        )


def file_shapes(path: Path) -> Mapping[str, Shape]:
    """The shape of every tensor of a safetensors file, from its header.

    Raises:
        UserError: The file cannot be read.
    """
    with (
        explained(lambda error: f"{path} cannot be read: {error}; copy it again."),
        safe_open(path, "pt") as file,
    ):
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
