"""The frozen language model: the only module that touches a ``transformers`` model's insides."""

import inspect
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from dfolora.errors import UserError
from dfolora.model.architecture import Architecture
from dfolora.model.factors import LinearMap
from dfolora.model.joint import can_join, join
from dfolora.model.kernels import no_cudnn_attention
from dfolora.model.layer import Layer, Packed
from dfolora.model.limits import TOKENS, Limits
from dfolora.model.packing import Group, Pack
from dfolora.model.streaming import StreamedLayer, Streaming, plain_parts
from dfolora.model.swapping import forwards


class Backbone:
    """A frozen model, its parts by name, and the logits of label words or of all tokens.

    Args:
        model: A ``transformers`` model with a vocabulary head. It is put into evaluation mode and
            its parameters are frozen, for good; their values are never written. It must not move to
            another device or type afterwards. Layers that are streamed move to host memory from
            wherever they are, and run on the device of the rest. On a GPU the weights of a layer's
            q, k and v move side by side.
        limits: How much goes through it at once; None for the defaults of its device.

    Raises:
        UserError: The model is of an unknown family, or neither on a CPU nor on a CUDA device; or
            CUDA graphs are asked for on a CPU.
    """

    def __init__(self, model: Any, limits: Limits | None = None) -> None:
        # Losses need float64, which MPS lacks. A model on "meta" only has its parameters counted.
        if model.device.type not in (*TOKENS, "meta"):
            raise UserError(
                f"The model is on {model.device}; dfolora runs on {' or '.join(TOKENS)}. Move it "
                f'with model.to("cpu").'
            )
        self.limits = limits or Limits()
        self.limits.check(model.device)
        self.model = model.eval().requires_grad_(False)
        # An 8-bit weight is of a type of torchao's; all others are plain parameters.
        quantized = any(type(weight) is not nn.Parameter for weight in model.parameters())
        streamed = self.limits.stream
        self.architecture = Architecture.of(model.config, quantized=quantized, streamed=streamed)
        self._family = self.architecture.family
        self._body: nn.Module = model.get_submodule(self._family.body)
        self._decoder: Any = model.get_output_embeddings()
        places = (path.rpartition(".") for path in self._family.final)
        found = (getattr(model.get_submodule(parent), name, None) for parent, _, name in places)
        self._finals = [module for module in found if module is not None]
        self._modules = list(model.get_submodule(self._family.layers))
        # A CPU takes as long for one product as for three.
        self._joined = self.device.type == "cuda" and all(map(self._join, self._modules))
        if self._joined:
            torch.cuda.empty_cache()  # where they were there is no room for anything larger
        self.streaming = Streaming(self._modules, self.device) if streamed else None
        """Lends the layers their weights; None if they have them."""
        self.layers = [self._layer(index) for index in range(len(self._modules))]
        """The transformer layers, on packed sequences."""
        self._signature = inspect.signature(self._modules[0].forward)

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
        return _nbytes(self.model)

    @property
    def device_nbytes(self) -> int:
        """Size of the weights on the device, in bytes: of layers that are streamed, two."""
        if self.streaming is None:
            return self.nbytes
        return self.nbytes - sum(map(_nbytes, self._modules)) + self.streaming.nbytes

    @property
    def unpacked_nbytes(self) -> int:
        """Size of a layer's largest 8-bit weight in the type in which it is multiplied; else 0."""
        if not self.architecture.quantized:
            return 0
        return self.dtype.itemsize * max(part.numel() for part in self._modules[0].parameters())

    @property
    def free_bytes(self) -> int:
        """Free bytes of its GPU, with those that torch keeps for reuse."""
        free, _total = torch.cuda.mem_get_info(self.device)
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + kept

    @property
    def tokens(self) -> int:
        """The most tokens per pass."""
        return self.limits.tokens or TOKENS[self.device.type]

    @property
    def embedding(self) -> Tensor:
        """The word embeddings, ``(V, H)``; in some models shorter than H."""
        return self.model.get_input_embeddings().weight

    @property
    def embedding_scale(self) -> float:
        """What the model multiplies word embeddings by; 1 but in Gemma."""
        return float(getattr(self.model.get_input_embeddings(), "embed_scale", 1.0))

    @property
    def begins_with(self) -> int | None:
        """The token with which the model's sequences begin, if its tokenizer puts it there."""
        return self.model.config.bos_token_id

    @torch.inference_mode()
    def embed(self, pack: Pack) -> tuple[Tensor, Packed]:
        """The input of layer 0, ``(1, M, H)``, and what goes with the pack through all layers."""
        given = [self._given_to_layers(group) for group in pack.coarse]
        known = dict[int, Tensor]()  # many layers are given the same
        each = zip(*given, strict=True)
        hidden, *arguments = (_packed(parts, pack.coarse, known) for parts in each)
        return hidden, Packed(pack=pack, arguments=arguments)

    def _given_to_layers(self, group: Group) -> list[Any]:
        """What the body gives its first layer, and what each layer beside its hidden states."""
        hidden: list[Tensor] = []
        arguments: list[dict[str, Any]] = []

        def note(entering: Tensor, *others: Any, **named: Any) -> Any:
            hidden.append(entering)
            arguments.append(_named(self._signature.bind(entering, *others, **named).arguments))
            return entering if self._family.interface else (entering, None)

        mask = None if group.keys is None else group.keys.long()
        unchanged = dict.fromkeys(self._finals, lambda left: left)  # nobody reads what leaves
        with forwards({**dict.fromkeys(self._modules, note), **unchanged}):
            self.forward(input_ids=group.input_ids, attention_mask=mask)
        return [hidden[0], *arguments]

    @torch.inference_mode()
    def label_logits(self, hidden: Tensor, label_ids: Tensor) -> Tensor:
        """Logits of the label words, and of no other token.

        Args:
            hidden: What leaves the last layer where the answers are read, ``(..., H)``.
            label_ids: ``(C,)``, the label words' token ids.

        Returns:
            ``(..., C)``, float32.
        """
        return self._head(self.final(hidden), label_ids)

    @torch.inference_mode()
    def vocabulary_logits(self, hidden: Tensor) -> Tensor:
        """Logits of all V tokens: ``(..., H) -> (..., V)``, float32; see `label_logits`."""
        return self._head(self.final(hidden), slice(None))

    @no_cudnn_attention()
    def forward(self, **inputs: Any) -> Tensor:
        """The model's own padded forward, before the head; gradients pass.

        Args:
            inputs: ``input_ids (n, T)`` or ``inputs_embeds (n, T, H)``, ``attention_mask``, and
                whatever else the model's body takes.

        Returns:
            ``(n, T, H)``.
        """
        if self._family.kind == "causal":
            inputs = {"use_cache": False} | inputs
        return self._body(**inputs).last_hidden_state

    def answer_logits(self, hidden: Tensor, label_ids: Tensor) -> Tensor:
        """As ``label_logits``, from the output of ``forward`` at the answers; gradients pass."""
        return self._head(hidden, label_ids)

    def final(self, hidden: Tensor) -> Tensor:
        """What the body does after its last layer, which gives what the head reads."""
        for module in self._finals:
            hidden = module(hidden)
        return hidden

    def _head(self, hidden: Tensor, tokens: Tensor | slice) -> Tensor:
        """The model's own head on what its body gives, for some tokens only: ``(..., _)``."""

        def decoded(transformed: Tensor) -> Tensor:
            bias = getattr(self._decoder, "bias", None)
            weight = self._decoder.weight[tokens]
            # A whole head in float32 beside one in half precision would be twice as large as it.
            at_once = len(weight) if weight.dtype == torch.float32 else ROWS_AT_ONCE
            parts = weight.split(at_once)
            biases = [None] * len(parts) if bias is None else bias[tokens].float().split(at_once)
            with torch.autocast(transformed.device.type, enabled=False):
                rows = transformed.float()
                logits = [
                    functional.linear(rows, part.float(), own)
                    for part, own in zip(parts, biases, strict=True)
                ]
            return torch.cat(logits, -1) if len(logits) > 1 else logits[0]

        rows = hidden.reshape(1, -1, hidden.shape[-1])
        body = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=rows)
        with forwards({self._body: lambda *_given, **_named: body, self._decoder: decoded}):
            return self.model(input_ids=None).logits.view(*hidden.shape[:-1], -1)

    def _join(self, layer: nn.Module) -> bool:
        """Whether a layer's q, k and v are one product from now on."""
        names = dict.fromkeys(self._family.maps[name] for name in "qkv")
        modules = [layer.get_submodule(name) for name in names]
        if joined := can_join(modules):
            join(modules)
        return joined

    def _layer(self, index: int) -> Layer | StreamedLayer:
        module = self._modules[index]
        maps = self._maps(module, f"{self._family.layers}.{index}")
        layer = Layer(module, index, maps, self._family, joined=self._joined)
        return layer if self.streaming is None else StreamedLayer(layer, index, self.streaming)

    def _maps(self, layer: Any, path: str) -> dict[str, LinearMap]:
        return {
            name: LinearMap(
                module=layer.get_submodule(place.module),
                path=f"{path}.{place.module}",
                place=place,
                columns=(
                    place.columns.to(self.device)
                    if isinstance(place.columns, Tensor)
                    else place.columns
                ),
            )
            for name, place in self.architecture.maps.items()
        }


ROWS_AT_ONCE = 16_384
"""Of a head in half precision, that are in float32 at once."""
UNUSED = ("hidden_states", "attention_mask", "position_ids", "kwargs")
"""Arguments that a layer is not given again. Its attention has a mask of our own, and position ids
serve kernels that find sequences by them."""


def _named(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a layer is given beside its hidden states, by name."""
    named = {**arguments, **arguments.get("kwargs", {})}
    return {
        name: value
        for name, value in named.items()
        if name not in UNUSED and value is not None and value is not False
    }


def _packed(parts: Sequence[Any], groups: Sequence[Group], known: dict[int, Tensor]) -> Any:
    """The groups' tensors one after another without padding, in whatever holds them.

    Args:
        parts: Each group's: tensors ``(n or 1, T, ...)``, which become one ``(1, M, ...)``.
        groups: Of the pack.
        known: What has been made, by the first group's tensor.
    """
    first = parts[0]
    if isinstance(first, dict):
        return {key: _packed([part[key] for part in parts], groups, known) for key in first}
    if isinstance(first, tuple):
        return tuple(_packed(each, groups, known) for each in zip(*parts, strict=True))
    if isinstance(first, Tensor):
        if id(first) not in known:
            made = [
                group.packed(part.expand(group.count, *part.shape[1:]).flatten(0, 1)[None])
                for part, group in zip(parts, groups, strict=True)
            ]
            known[id(first)] = torch.cat(made, dim=1)
        return known[id(first)]
    if isinstance(first, (bool, int, str)):
        return first
    raise UserError(f"The model gives its layers a {type(first).__name__}, which cannot be packed.")


def _nbytes(module: nn.Module) -> int:
    weights = chain(module.parameters(), module.buffers())
    return sum(part.nbytes for weight in weights for part in plain_parts(weight))
