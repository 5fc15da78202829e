"""int8 weights: a quarter of the bytes, nearly the same logits."""

import sys

import pytest
import torch

from dfolora.errors import UserError
from dfolora.model.backbone import Backbone
from dfolora.model.quantize import quantize_layers
from tests.conftest import tiny_model


def quantized(family):
    model = tiny_model(family).bfloat16()
    quantize_layers(model)
    return Backbone(model)


def test_logits_are_nearly_those_of_the_whole_weights(family, batch, label_ids):
    from dfolora.engine.forward import Engine

    exact = Engine(Backbone(tiny_model(family)), batch, label_ids)({})
    rounded = Engine(quantized(family), batch, label_ids)({})
    gap = (rounded - exact).abs().max()
    assert 0 < gap < 0.1 * exact.std()  # a step is 1/127 of a row's largest weight


def test_bytes_are_those_of_the_parts(family):
    whole, rounded = Backbone(tiny_model(family).bfloat16()), quantized(family)
    assert whole.nbytes >= 2 * sum(weight.numel() for weight in whole.model.parameters())
    maps = sum(
        weight.numel()
        for name, weight in whole.model.named_parameters()
        if weight.ndim == 2 and f"{whole.architecture.family.layers}." in name
    )
    saved = whole.nbytes - rounded.nbytes
    assert 0.8 * maps < saved < maps  # a byte a weight, less the scales


def test_only_the_layers_linear_maps_are_rounded(family):
    whole, rounded = tiny_model(family).bfloat16(), quantized(family)
    kept = dict(rounded.model.named_parameters())
    for name, parameter in whole.named_parameters():
        is_map = parameter.ndim == 2 and f"{rounded.architecture.family.layers}." in name
        if is_map:
            assert kept[name].qdata.dtype == torch.int8, name
            assert kept[name].qdata.numel() == parameter.numel()
        else:
            assert torch.equal(kept[name], parameter), name


def test_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(
        UserError, match=r"precision=int8 needs torchao: pip install 'dfolora\[int8\]'"
    ):
        quantize_layers(tiny_model("roberta"))
