"""A model's family, layers, maps and sizes, known before its weights are loaded."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dfolora.data import Kind
from dfolora.errors import UserError
from dfolora.model.factors import MapPlace
from dfolora.model.families import FAMILIES, UNSUPPORTED, Family
from dfolora.validation import subset, whole

SIZES = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings",
    "vocab_size",
)  # fmt: skip
"""Sizes that every family has, by transformers' common names."""
FFN_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim")
"""What configurations call the FFN's width."""
OTHER_DIRECTIONS: Mapping[Kind, Mapping[str, str]] = {
    "masked": {
        "is_decoder": "it attends to the left alone",
        "add_cross_attention": "it attends to another model's states too",
    },
    "causal": {
        "use_bidirectional_attention": "it attends to the right too",
        "add_cross_attention": "it attends to another model's states too",
    },
}
"""What a configuration can ask of attention that the family's models do not have."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model's family and sizes, read from its configuration alone."""

    family: Family
    layers: int
    width: int
    """H, the hidden size."""
    body_width: int
    """Width of what the body gives its head: H, but for OPT-350M."""
    word_width: int
    """Width of the word embeddings: H, but for OPT-350M and Electra."""
    heads: int
    kv_heads: int
    """Heads of keys and values; several heads of queries may share one."""
    head_width: int
    ffn_width: int
    parallel: bool
    """Whether the FFN reads the layer's input, as in Pythia, and not what attention added to it."""
    capped: bool
    """Whether a tanh bounds the scores of attention, as in Gemma 2, which torch has not fused."""
    max_length: int
    """Longest input in tokens, special tokens included."""
    quantized: bool = False
    """Whether the layers' weights are int8, through which no gradient passes."""
    streamed: bool = False
    """Whether the layers' weights stay in host memory, where no gradient finds them."""

    @classmethod
    def of(cls, config: Any, *, quantized: bool = False, streamed: bool = False) -> "Architecture":
        """Read a ``transformers`` configuration.

        Args:
            config: The configuration.
            quantized: Whether the layers' weights are int8.
            streamed: Whether the layers' weights stay in host memory.

        Raises:
            UserError: The model type is not supported, or a size is invalid.
        """
        family = _family(config)
        for key, meaning in OTHER_DIRECTIONS[family.kind].items():
            if getattr(config, key, False):
                raise UserError(
                    f"The model's {key}={getattr(config, key)}: {meaning}, which dfolora does not "
                    f"do with {config.model_type}. Correct its config.json or model.architecture, "
                    f"or take another model."
                )
        for size in SIZES:
            whole(getattr(config, size, None), f"the model's {size}", least=1)
        heads, width = config.num_attention_heads, config.hidden_size
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_width = getattr(config, "head_dim", None)
        if not head_width and width % heads:
            raise UserError(
                f"The model's hidden_size={width} does not divide into "
                f"num_attention_heads={heads} equal parts; correct its config.json or "
                f"model.architecture."
            )
        if heads % kv_heads:
            raise UserError(
                f"The model's num_attention_heads={heads} cannot share "
                f"num_key_value_heads={kv_heads} evenly; correct its config.json or "
                f"model.architecture."
            )
        if family.padding_first:
            whole(config.pad_token_id, "the model's pad_token_id", least=0)
        offset = config.pad_token_id + 1 if family.padding_first else 0
        body_width = getattr(config, "word_embed_proj_dim", width)
        ffn_width = next(filter(None, (getattr(config, x, None) for x in FFN_WIDTHS)), 4 * width)
        return cls(
            family=family,
            layers=config.num_hidden_layers,
            width=width,
            body_width=body_width,
            word_width=getattr(config, "embedding_size", body_width),
            heads=heads,
            kv_heads=kv_heads,
            head_width=head_width or width // heads,
            ffn_width=ffn_width,
            capped=getattr(config, "attn_logit_softcapping", None) is not None,
            parallel=bool(getattr(config, "use_parallel_residual", False)),
            max_length=config.max_position_embeddings - offset,
            quantized=quantized,
            streamed=streamed,
        )

    @property
    def padded_attention(self) -> str:
        """What attends in the model's own padded forward.

        Named, for a config.json may name a kernel of the hub, which is code.
        """
        return "eager" if self.capped or not self.family.interface else "sdpa"

    @cached_property
    def maps(self) -> dict[str, MapPlace]:
        """The attention maps q, k, v and o of every layer."""
        own, shared = self.heads * self.head_width, self.kv_heads * self.head_width
        widths = {"q": own, "k": shared, "v": shared}
        total, first = sum(widths.values()), 0
        places = dict[str, MapPlace]()
        for name, d_out in widths.items():
            columns: slice | Tensor = slice(0, d_out)
            if self.family.fused == "side by side":
                columns = slice(first, first + d_out)
            elif self.family.fused == "by head":
                each = torch.arange(total).view(self.heads, 3, self.head_width)
                columns = each[:, len(places)].flatten()
            places[name] = MapPlace(
                module=self.family.maps[name],
                columns=columns,
                d_in=self.width,
                d_out=d_out,
                d_module=d_out if self.family.fused == "apart" else total,
            )
            first += d_out
        places["o"] = MapPlace(
            module=self.family.maps["o"],
            columns=slice(0, self.width),
            d_in=own,
            d_out=self.width,
            d_module=self.width,
        )
        return places

    @property
    def map_numbers(self) -> int:
        """Weights of a layer's attention maps."""
        return sum(place.d_in * place.d_out for place in self.maps.values())

    @property
    def ffn_numbers(self) -> int:
        """Weights of a layer's FFN."""
        return self.family.ffn_maps * self.width * self.ffn_width

    @property
    def layer_numbers(self) -> int:
        """Weights of a layer, its norms and biases left aside."""
        return self.map_numbers + self.ffn_numbers

    @property
    def carried_numbers(self) -> int:
        """Numbers per token that enter a layer: its input, and rotary positions of two kinds."""
        return self.width + 4 * self.head_width * self.family.rotary

    @property
    def live_numbers(self) -> int:
        """An upper bound on the numbers per token that a layer holds at once.

        They are the input, its norm, q, k, v, their context and the output, and for each map of the
        FFN its width, for its activation may not work in place.
        """
        attention = 2 * (self.heads + self.kv_heads) * self.head_width
        return 4 * self.width + attention + self.family.ffn_maps * self.ffn_width

    def check_targets(self, targets: Sequence[str], where: str = "targets") -> None:
        """Raise UserError if the targets are not a list of distinct attention maps."""
        if isinstance(targets, str) or not isinstance(targets, Sequence):
            raise UserError(f"{where}={targets} must be a list, such as [q,k].")
        subset(targets, where, self.family.maps)

    def check_rank(self, rank: int) -> None:
        """Raise UserError unless LoRA factors of that rank are no wider than the model."""
        whole(rank, "rank", least=1)
        if rank > self.width:
            raise UserError(f"rank={rank} must lie between 1 and {self.width}.")

    def whole_modules(self, maps: Sequence[str]) -> tuple[str, ...]:
        """The modules inside a layer that hold these attention maps and no others.

        Args:
            maps: Names among q, k, v and o.

        Raises:
            UserError: A module holds others too, as GPT-2's ``c_attn`` does unless all of q, k and
                v are named.
        """
        places = self.family.maps
        modules = dict.fromkeys(places[name] for name in maps)
        for module in modules:
            held = [name for name, place in places.items() if place == module]
            if missing := [name for name in held if name not in maps]:
                raise UserError(
                    f"Got {', '.join(maps)}, but this model keeps {', '.join(held)} in one module, "
                    f"{module}, which is trained as a whole; name {', '.join(missing)} too, or "
                    f"none of them (method.trained.targets)."
                )
        return tuple(modules)


HEADS_OF_OTHERS = re.compile(r"For(\w*Classification|QuestionAnswering|MultipleChoice)$")
"""Ends of the names of models whose head is none over the vocabulary."""


def _family(config: Any) -> Family:
    kind = config.model_type
    for name in getattr(config, "architectures", None) or ():
        if HEADS_OF_OTHERS.search(name):
            raise UserError(
                f"The checkpoint is a {name}: it has no head over the vocabulary, whose logits of "
                f"label words are read here. Take the model that it was made from."
            )
    if kind in UNSUPPORTED:
        raise UserError(
            f"Models of type {kind!r} cannot be run exactly: {UNSUPPORTED[kind]}. Supported are "
            f"{', '.join(FAMILIES)}."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"The model is an encoder-decoder ({kind}); supported are masked and causal language "
            f"models: {', '.join(FAMILIES)}."
        )
    family = FAMILIES.get(kind)
    if family is None:
        raise UserError(
            f"The model is of type {kind!r}; supported are {', '.join(FAMILIES)}. To add one, "
            f"write its entry in FAMILIES (src/dfolora/model/families.py)."
        )
    if not getattr(config, "do_layer_norm_before", True):  # OPT-350M alone
        family = replace(family, norm_first=False)
    return family
