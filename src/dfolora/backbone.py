"""The frozen language model: the only module that touches a ``transformers`` model's insides."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfolora.architecture import Architecture
from dfolora.lora import LayerLora, LinearMap, adapted


class Backbone:
    """A frozen model, its parts by name, and the logits of an answer's label words.

    Args:
        model: A ``transformers`` model with a vocabulary head. It is put into evaluation mode and
            its parameters are frozen, for good; their values are never written.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.architecture = Architecture.of(model.config)
        self._family = self.architecture.family
        self._layers = [
            (f"{self._family.layers}.{index}", layer)
            for index, layer in enumerate(model.get_submodule(self._family.layers))
        ]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def embedding(self) -> Tensor:
        """The word embeddings, ``(V, H)``."""
        return self.model.get_submodule(self._family.embedding).weight

    def linear_map(self, layer: int, name: str) -> LinearMap:
        """The map ``name`` (q, k, v or o) of a layer."""
        place = self._family.maps[name]
        path, module = self._layers[layer]
        width = self.architecture.width
        return LinearMap(
            module=module.get_submodule(place.module),
            path=f"{path}.{place.module}",
            columns=slice(place.block * width, (place.block + 1) * width),
            d_in=width,
            d_out=width,
        )

    @torch.inference_mode()
    def answer_logits(
        self, input_ids: Tensor, attention_mask: Tensor, answer: Tensor, label_ids: Tensor
    ) -> Tensor:
        """Logits of the label words where the answer is read; no other token's are computed.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, 1 for real tokens.
            answer: ``(B,)``, the position that answers.
            label_ids: ``(C,)``, the label words' token ids.

        Returns:
            ``(B, C)``, float32.
        """
        hidden = self._hidden(input_ids, attention_mask)
        rows = torch.arange(len(answer), device=hidden.device)
        transformed = self._family.transform(self.model, hidden[rows, answer])
        decoder = self.model.get_submodule(self._family.decoder)
        bias = None if decoder.bias is None else decoder.bias[label_ids].float()
        return functional.linear(transformed.float(), decoder.weight[label_ids].float(), bias)

    @contextmanager
    def with_lora(self, layers: Iterable[LayerLora]) -> Iterator[None]:
        """Inside, the model uses these factors; on leaving, even by an error, it is as before."""
        updates = [
            (self.linear_map(lora.layer, name), factors)
            for lora in layers
            for name, factors in lora.factors.items()
        ]
        with adapted(updates):
            yield

    @torch.inference_mode()
    def visit_layer_inputs(
        self, input_ids: Tensor, attention_mask: Tensor, visit: Callable[[int, Tensor], None]
    ) -> None:
        """One forward; ``visit(layer, hidden (B, T, H))`` sees what enters each layer.

        Nothing is kept, so memory does not grow with the depth.
        """
        with ExitStack() as stack:
            for index, (_path, layer) in enumerate(self._layers):
                handle = layer.register_forward_pre_hook(_visitor(index, visit))
                stack.callback(handle.remove)
            self._hidden(input_ids, attention_mask)

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        body = self.model.get_submodule(self._family.body)
        output = body(
            input_ids=input_ids, attention_mask=attention_mask, **self._family.forward_options
        )
        return output.last_hidden_state


def _visitor(index: int, visit: Callable[[int, Tensor], None]) -> Any:
    def see(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        visit(index, args[0])

    return see
