"""Checks a model's weights before they are loaded, from sizes and file headers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from dfolora.data import Kind
from dfolora.errors import UserError, explained, first_line
from dfolora.model.architecture import Architecture
from dfolora.resources import check_room

Shape = tuple[int, ...]


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


def check_files(folder: Path, expected: Mapping[str, Shape], prefix: str) -> None:
    """Raise UserError unless a folder's weights can be read and have the model's shapes.

    Missing and superfluous tensors are the loader's to report.

    Args:
        folder: The model's folder, with ``config.json``.
        expected: From ``expected_shapes``.
        prefix: What checkpoints without a head, such as GPT-2's, leave out of names.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(path.name for end in ("bin", "gguf") for path in folder.glob(f"*.{end}"))
        beside = f" but {', '.join(others)}, and no pickle and no GGUF is read" if others else ""
        raise UserError(
            f"{folder} holds no *.safetensors{beside}; load the model where it comes from, "
            f"save_pretrained it, and copy that folder."
        )
    for path in files:
        for name, shape in _shapes(path).items():
            wanted = expected.get(name, expected.get(f"{prefix}.{name}", shape))
            if shape != wanted:
                raise UserError(
                    f"{path} holds {name} of shape {shape}, the model of config.json has {wanted}: "
                    f"they are of two models. Copy both from one."
                )


def _shapes(path: Path) -> Mapping[str, Shape]:
    with (
        explained(lambda error: f"{path} cannot be read: {error}; copy it again."),
        safe_open(path, "pt") as file,
    ):
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
