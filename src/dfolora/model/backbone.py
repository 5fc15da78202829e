"""The frozen language model: the only module that touches a ``transformers`` model's insides."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfolora.errors import UserError
from dfolora.model.architecture import Architecture
from dfolora.model.factors import LinearMap
from dfolora.model.layer import Layer
from dfolora.model.limits import TOKENS, Limits
from dfolora.model.packing import Pack


class Backbone:
    """A frozen model, its parts by name, and the logits of label words or of all tokens.

    Args:
        model: A ``transformers`` model with a vocabulary head. It is put into evaluation mode and
            its parameters are frozen, for good; their values are never written. It must not move to
            another device or type afterwards.
        limits: How much goes through it at once; None for the defaults of its device.

    Raises:
        UserError: The model is of an unknown family, or neither on a CPU nor on a CUDA device.
    """

    def __init__(self, model: Any, limits: Limits | None = None) -> None:
        # Losses need float64, which MPS lacks. A model on "meta" only has its parameters counted.
        if model.device.type not in (*TOKENS, "meta"):
            raise UserError(
                f"The model is on {model.device}; dfolora runs on {' or '.join(TOKENS)}. Move it "
                f'with model.to("cpu").'
            )
        self.limits = limits or Limits()
        self.model = model.eval().requires_grad_(False)
        # An 8-bit weight is of a type of torchao's; all others are plain parameters.
        quantized = any(type(weight) is not nn.Parameter for weight in model.parameters())
        self.architecture = Architecture.of(model.config, quantized=quantized)
        self._family = self.architecture.family
        modules = model.get_submodule(self._family.layers)
        self.layers = [
            Layer(module, self._maps(module, f"{self._family.layers}.{index}"), self.architecture)
            for index, module in enumerate(modules)
        ]
        """The transformer layers, on packed sequences."""

    @property
    def device(self) -> torch.device:
        """The weights' device."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The hidden states' type."""
        return self.model.dtype

    @property
    def nbytes(self) -> int:
        """Size of the weights, in bytes."""
        tensors = chain(self.model.parameters(), self.model.buffers())
        return sum(map(_nbytes, tensors))

    @property
    def tokens(self) -> int:
        """The most tokens per pass."""
        return self.limits.tokens or TOKENS[self.device.type]

    @property
    def embedding(self) -> Tensor:
        """The word embeddings, ``(V, H)``."""
        return self.model.get_submodule(self._family.embedding).weight

    @torch.inference_mode()
    def embed(self, pack: Pack) -> Tensor:
        """The input of layer 0: ``(1, M, H)``."""
        hidden = [
            group.packed(self._family.embed(self.model, group.input_ids).flatten(0, 1)[None])
            for group in pack.groups
        ]
        return torch.cat(hidden, dim=1)

    @torch.inference_mode()
    def label_logits(self, hidden: Tensor, label_ids: Tensor) -> Tensor:
        """Logits of the label words, and of no other token.

        Args:
            hidden: What leaves the last layer where the answers are read, ``(..., H)``.
            label_ids: ``(C,)``, the label words' token ids.

        Returns:
            ``(..., C)``, float32.
        """
        return self._decoded(self._family.transform(self.model, hidden), label_ids)

    @torch.inference_mode()
    def vocabulary_logits(self, hidden: Tensor) -> Tensor:
        """Logits of all V tokens: ``(..., H) -> (..., V)``, float32; see `label_logits`."""
        return self._decoded(self._family.transform(self.model, hidden), slice(None))

    def forward(self, **inputs: Any) -> Tensor:
        """The model's own padded forward, before the head; gradients pass.

        Args:
            inputs: ``input_ids (n, T)`` or ``inputs_embeds (n, T, H)``, ``attention_mask``, and
                whatever else the model's body takes.

        Returns:
            ``(n, T, H)``.
        """
        body = self.model.get_submodule(self._family.body)
        return body(**inputs, **self._family.forward_options).last_hidden_state

    def answer_logits(self, hidden: Tensor, label_ids: Tensor) -> Tensor:
        """As ``label_logits``, from the output of ``forward`` at the answers; gradients pass."""
        if not self._family.body_transforms:
            hidden = self._family.transform(self.model, hidden)
        return self._decoded(hidden, label_ids)

    def _decoded(self, transformed: Tensor, tokens: Tensor | slice) -> Tensor:
        decoder = self.model.get_submodule(self._family.decoder)
        bias = None if decoder.bias is None else decoder.bias[tokens].float()
        with torch.autocast(transformed.device.type, enabled=False):
            return functional.linear(transformed.float(), decoder.weight[tokens].float(), bias)

    def _maps(self, layer: Any, path: str) -> dict[str, LinearMap]:
        width = self.architecture.width
        return {
            name: LinearMap(
                module=layer.get_submodule(place.module),
                path=f"{path}.{place.module}",
                columns=slice(place.block * width, (place.block + 1) * width),
                d_in=width,
                d_out=width,
                d_module=place.blocks * width,
            )
            for name, place in self._family.maps.items()
        }


def _nbytes(tensor: Tensor) -> int:
    """Of an 8-bit weight, which is made of several tensors, as of any other."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(_nbytes(getattr(tensor, name)) for name in names)
