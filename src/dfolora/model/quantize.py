"""Rounds a frozen model's layers to 8-bit weights with torchao: a quarter of float32's memory."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from dfolora.errors import UserError
from dfolora.model.families import FAMILIES


def check_torchao() -> None:
    """Raise UserError unless torchao is installed."""
    try:
        import torchao.quantization  # noqa: F401
    except ImportError as error:
        raise UserError("precision=int8 needs torchao: pip install 'dfolora[int8]'.") from error


def quantize_layers(model: Any) -> None:
    """Round the layers' linear maps to int8 in place, with one scale a row; the rest is unchanged.

    GPT-2's ``Conv1D`` become ``nn.Linear``, the only kind that torchao quantizes.

    Args:
        model: A ``transformers`` model that nobody else uses.

    Raises:
        UserError: torchao is not installed.
    """
    check_torchao()
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layers = model.get_submodule(FAMILIES[model.config.model_type].layers)
    for parent in list(layers.modules()):
        for name, module in parent.named_children():
            if isinstance(module, Conv1D):
                setattr(parent, name, _linear(module))
    quantize_(layers, Int8WeightOnlyConfig())


def _linear(module: Conv1D) -> nn.Linear:
    d_in, d_out = module.weight.shape
    linear = nn.Linear(d_in, d_out, device="meta")
    linear.weight = nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(module.bias.detach(), requires_grad=False)
    return linear
