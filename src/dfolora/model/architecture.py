"""A model's family, layers, maps and sizes, known before its weights are loaded.

A new family is one entry in ``FAMILIES``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from dfolora.data import Kind
from dfolora.errors import UserError
from dfolora.validation import subset, whole


@dataclass(frozen=True, kw_only=True)
class MapPlace:
    """Where a layer stores one of its attention maps."""

    module: str
    """Dotted name inside the layer."""
    block: int = 0
    """This map's index among the ``blocks`` equal parts of the module's output columns."""
    blocks: int = 1


@dataclass(frozen=True, kw_only=True)
class LayerParts:
    """Dotted names, inside a layer, of the modules around its attention maps."""

    attention: str
    """The module with the attention scores' ``scaling`` and ``is_causal``."""
    attention_norm: str
    up: str
    activation: str
    down: str
    ffn_norm: str
    norm_first: bool
    """Whether norms come before attention and FFN (GPT-2), or after the residual sums (BERT)."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where one ``model_type`` of transformers stores its parts."""

    kind: Kind
    """``masked``: the answer is read at the mask; ``causal``: at the last token."""
    body: str
    """The model without its vocabulary head; its output is ``last_hidden_state``."""
    layers: str
    embedding: str
    decoder: str
    """The vocabulary head's last module; its weight has one row per token."""
    maps: Mapping[str, MapPlace]
    parts: LayerParts
    input_first: bool
    """Whether weights are stored as (input, output), as in GPT-2, not as (output, input)."""
    embed: Callable[[Any, Tensor], Tensor]
    """``(model, input_ids (B, T)) -> (B, T, H)``: what enters layer 0."""
    transform: Callable[[Any, Tensor], Tensor]
    """``(model, hidden (B, H)) -> (B, H)``: everything between the last layer and ``decoder``."""
    body_transforms: bool
    """Whether ``transform`` belongs to ``body``, as in GPT-2, or to the head."""
    caches: bool
    """Whether attention accepts cached keys and values, which prefix tuning needs."""
    forward_options: Mapping[str, Any]


def _roberta_embed(model: Any, input_ids: Tensor) -> Tensor:
    return model.roberta.embeddings(input_ids=input_ids)


def _bert_embed(model: Any, input_ids: Tensor) -> Tensor:
    return model.bert.embeddings(input_ids=input_ids)


def _gpt2_embed(model: Any, input_ids: Tensor) -> Tensor:
    body = model.transformer
    return body.wte(input_ids) + body.wpe.weight[: input_ids.shape[1]]


def _roberta_transform(model: Any, hidden: Tensor) -> Tensor:
    head = model.lm_head
    return head.layer_norm(functional.gelu(head.dense(hidden)))


def _bert_transform(model: Any, hidden: Tensor) -> Tensor:
    return model.cls.predictions.transform(hidden)


def _gpt2_transform(model: Any, hidden: Tensor) -> Tensor:
    return model.transformer.ln_f(hidden)


_ENCODER_MAPS = {
    "q": MapPlace(module="attention.self.query"),
    "k": MapPlace(module="attention.self.key"),
    "v": MapPlace(module="attention.self.value"),
    "o": MapPlace(module="attention.output.dense"),
}
_ENCODER_PARTS = LayerParts(
    attention="attention.self",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    activation="intermediate.intermediate_act_fn",
    down="output.dense",
    ffn_norm="output.LayerNorm",
    norm_first=False,
)
_GPT2_PARTS = LayerParts(
    attention="attn",
    attention_norm="ln_1",
    up="mlp.c_fc",
    activation="mlp.act",
    down="mlp.c_proj",
    ffn_norm="ln_2",
    norm_first=True,
)
FAMILIES: Mapping[str, Family] = {
    "roberta": Family(
        kind="masked",
        body="roberta",
        layers="roberta.encoder.layer",
        embedding="roberta.embeddings.word_embeddings",
        decoder="lm_head.decoder",
        maps=_ENCODER_MAPS,
        parts=_ENCODER_PARTS,
        input_first=False,
        embed=_roberta_embed,
        transform=_roberta_transform,
        body_transforms=False,
        caches=True,
        forward_options={},
    ),
    "bert": Family(
        kind="masked",
        body="bert",
        layers="bert.encoder.layer",
        embedding="bert.embeddings.word_embeddings",
        decoder="cls.predictions.decoder",
        maps=_ENCODER_MAPS,
        parts=_ENCODER_PARTS,
        input_first=False,
        embed=_bert_embed,
        transform=_bert_transform,
        body_transforms=False,
        caches=True,
        forward_options={},
    ),
    "gpt2": Family(
        kind="causal",
        body="transformer",
        layers="transformer.h",
        embedding="transformer.wte",
        decoder="lm_head",
        maps={
            "q": MapPlace(module="attn.c_attn", block=0, blocks=3),
            "k": MapPlace(module="attn.c_attn", block=1, blocks=3),
            "v": MapPlace(module="attn.c_attn", block=2, blocks=3),
            "o": MapPlace(module="attn.c_proj"),
        },
        parts=_GPT2_PARTS,
        input_first=True,
        embed=_gpt2_embed,
        transform=_gpt2_transform,
        body_transforms=True,
        caches=True,
        forward_options={"use_cache": False},
    ),
}


SIZES = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings",
    "vocab_size",
)  # fmt: skip
"""Sizes that every family has, by transformers' common names."""


def _ffn_width(config: Any) -> int:
    """The FFN's width; GPT-2's may be None, which means four times the hidden size."""
    width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return width or 4 * config.hidden_size


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model's family and sizes, read from its configuration alone."""

    family: Family
    layers: int
    width: int
    """H, the hidden size; every attention map is H x H."""
    heads: int
    ffn_width: int
    max_length: int
    """Longest input in tokens, special tokens included."""
    quantized: bool = False
    """Whether the layers' weights are int8, through which no gradient passes."""

    @classmethod
    def of(cls, config: Any, *, quantized: bool = False) -> "Architecture":
        """Read a ``transformers`` configuration.

        Args:
            config: The configuration.
            quantized: Whether the layers' weights are int8.

        Raises:
            UserError: The model type is not supported, or a size is invalid.
        """
        family = FAMILIES.get(config.model_type)
        if family is None:
            raise UserError(
                f"The model is of type {config.model_type!r}; supported are {', '.join(FAMILIES)}. "
                f"To add one, write its entry in FAMILIES (src/dfolora/model/architecture.py)."
            )
        for size in SIZES:
            whole(getattr(config, size, None), f"the model's {size}", least=1)
        if config.hidden_size % config.num_attention_heads:
            raise UserError(
                f"The model's hidden_size={config.hidden_size} does not divide into "
                f"num_attention_heads={config.num_attention_heads} equal parts; correct its "
                f"config.json or model.architecture."
            )
        if config.model_type == "roberta":
            whole(config.pad_token_id, "the model's pad_token_id", least=0)
        # RoBERTa numbers its positions from the padding id + 1 on.
        offset = config.pad_token_id + 1 if config.model_type == "roberta" else 0
        return cls(
            family=family,
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            ffn_width=_ffn_width(config),
            max_length=config.max_position_embeddings - offset,
            quantized=quantized,
        )

    @property
    def live_numbers(self) -> int:
        """An upper bound on the numbers per token that a layer holds at once.

        They are the input, its norm, q, k, v, their context and the output, and twice the FFN's
        width, for its activation may not work in place.
        """
        return 8 * self.width + 2 * self.ffn_width

    def check_targets(self, targets: Sequence[str], where: str = "targets") -> None:
        """Raise UserError if the targets are not distinct attention maps."""
        subset(targets, where, self.family.maps)

    def whole_modules(self, maps: Sequence[str]) -> tuple[str, ...]:
        """The modules inside a layer that hold these attention maps and no others.

        Args:
            maps: Names among q, k, v and o.

        Raises:
            UserError: A module holds others too, as GPT-2's ``c_attn`` does unless all of q, k and
                v are named.
        """
        places = self.family.maps
        modules = dict.fromkeys(places[name].module for name in maps)
        for module in modules:
            held = [name for name, place in places.items() if place.module == module]
            if missing := [name for name in held if name not in maps]:
                raise UserError(
                    f"Got {', '.join(maps)}, but this model keeps {', '.join(held)} in one module, "
                    f"{module}, which is trained as a whole; name {', '.join(missing)} too, or "
                    f"none of them."
                )
        return tuple(modules)
