"""Growth of the cost with population, layers, examples and length, beside the formulae."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dfolora.model import Backbone, Checkpoint
from dfolora.search.subspace import LoraSubspaceSpec
from pipelines.benchmark.flops import flops_engine
from pipelines.benchmark.speed import (
    CLASSES,
    FIRST_TOKEN,
    batch_of,
    engine_seconds,
    mean_over_layers,
    shape_of,
    spread,
)

HEAD_WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class Point:
    """A generation of one setting, averaged over layers."""

    varied: str
    value: int
    seconds: float
    flops: float


def points(settings: Mapping[str, Any], device: str, rng: np.random.Generator) -> Iterator[Point]:
    """Vary one of ``settings.base`` at a time over its values."""
    base = dict(settings["base"])
    for varied in base:
        for value in settings[varied]:
            setting = base | {varied: value}
            yield _measured(varied, value, setting, settings["width"], device, rng)


def _measured(
    varied: str,
    value: int,
    setting: Mapping[str, int],
    width: int,
    device: str,
    rng: np.random.Generator,
) -> Point:
    backbone = _model(setting["layers"], width, setting["length"], device)
    shape = shape_of(backbone, rank=2)
    lengths = [setting["length"]] * setting["examples"]
    batch = batch_of(lengths, backbone.model.config.vocab_size, rng)
    subspace = LoraSubspaceSpec().build(backbone, batch.input_ids, batch.attention_mask, 0)
    population, layers = setting["population"], setting["layers"]
    taken = dict(
        engine_seconds(
            backbone, subspace, batch, torch.arange(CLASSES) + FIRST_TOKEN,
            population=population, layers=spread(layers, 4), rng=rng,
        )
    )  # fmt: skip
    return Point(
        varied=varied,
        value=value,
        seconds=population * mean_over_layers(taken, layers),
        flops=population * flops_engine(shape, lengths, population),
    )


def _model(layers: int, width: int, length: int, device: str) -> Backbone:
    architecture = {
        "model_type": "roberta",
        "vocab_size": 1000,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": 4 * width,
        "max_position_embeddings": length + 2,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    }
    return Checkpoint(
        path="scaling", revision="main", tokenizer=None, weights="random",
        architecture=architecture, device=device, precision="fp32",
    ).load_backbone()  # fmt: skip
