"""The evaluation as the code released with the paper does it, to be timed beside the engine.

Jin, Liu, Tan 2024: one forward of all examples, padded to the longest, for each candidate; low-rank
terms in every layer; the vocabulary head at every position.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dfolora.data import Batch
from dfolora.model import Backbone, LayerLora, LoraFactors


@torch.inference_mode()
def label_logits(
    backbone: Backbone, batch: Batch, label_ids: Tensor, layers: Mapping[int, LayerLora]
) -> Tensor:
    """One candidate: ``(N, C)``."""
    with _low_rank_terms(backbone, layers):
        logits = backbone.model(
            input_ids=batch.input_ids.to(backbone.device),
            attention_mask=batch.attention_mask.to(backbone.device),
        ).logits
    rows = torch.arange(len(batch.answer))
    return logits[rows, batch.answer][:, label_ids]


@contextmanager
def _low_rank_terms(backbone: Backbone, layers: Mapping[int, LayerLora]) -> Iterator[None]:
    with ExitStack() as stack:
        for index, lora in layers.items():
            for name, factors in lora.factors.items():
                linear = backbone.layers[index].maps[name]
                module = backbone.model.get_submodule(linear.path)
                handle = module.register_forward_hook(_adder(linear.place.columns, factors))
                stack.callback(handle.remove)
        yield


def _adder(columns: slice | Tensor, factors: LoraFactors) -> Any:
    def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        down, up = factors.down[0].to(output.dtype), factors.up[0].to(output.dtype)
        output[..., columns] += (args[0] @ down) @ up
        return output

    return add
