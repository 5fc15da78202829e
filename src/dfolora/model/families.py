"""The families of models: where each ``model_type`` of transformers stores its parts.

A new family is one entry in ``FAMILIES``; its layers run by transformers' own code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dfolora.data import Kind

Fused = Literal["apart", "side by side", "by head"]
"""How q, k and v share modules: each has its own; one holds q, then k, then v; or one holds the
three of the first head, then those of the second, and so on."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Dotted names of one family's modules; those of a layer's parts begin inside the layer."""

    kind: Kind
    """``masked``: the answer is read at the mask; ``causal``: at the last token."""
    body: str
    """The model without its vocabulary head."""
    layers: str
    """The list of layers."""
    attention: str
    """What attends: it takes the hidden states, or their norm, and holds the maps q, k and v."""
    attention_norm: str
    ffn_norm: str
    norm_first: bool
    """Whether ``attention_norm`` comes before attention, as in GPT-2, or after it, as in BERT."""
    maps: Mapping[str, str]
    """The modules of the attention maps q, k, v and o."""
    fused: Fused = "apart"
    up: str
    down: str
    ffn_maps: int = 2
    """Maps of the FFN: 3 where a gate multiplies ``up``."""
    interface: bool = True
    """Whether attention goes through transformers' interface; else, as in GPT-Neo, it is the method
    ``_attn`` of the attention module, and layers return tuples."""
    caches: bool = True
    """Whether attention accepts cached keys and values, which prefix tuning needs."""
    final: tuple[str, ...] = ()
    """What the body applies after its last layer, where it has it."""
    input_first: bool = False
    """Whether weights are stored as (input, output), as in GPT-2, not as (output, input)."""
    padding_first: bool = False
    """Whether positions are numbered from the padding id + 1 on, as in RoBERTa."""
    rotary: bool = False
    """Whether layers are given the rotary positions' cosines and sines."""

    @property
    def prefix(self) -> str:
        """What checkpoints without a head, such as GPT-2's, leave out of names."""
        return self.layers.split(".")[0]


_BERT = Family(
    kind="masked",
    body="bert",
    layers="bert.encoder.layer",
    attention="attention.self",
    attention_norm="attention.output.LayerNorm",
    ffn_norm="output.LayerNorm",
    norm_first=False,
    maps={
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "o": "attention.output.dense",
    },
    up="intermediate.dense",
    down="output.dense",
)
_ROBERTA = replace(_BERT, body="roberta", layers="roberta.encoder.layer", padding_first=True)
_LLAMA = Family(
    kind="causal",
    body="model",
    layers="model.layers",
    attention="self_attn",
    attention_norm="input_layernorm",
    ffn_norm="post_attention_layernorm",
    norm_first=True,
    maps={name: f"self_attn.{name}_proj" for name in "qkvo"},
    up="mlp.up_proj",
    down="mlp.down_proj",
    ffn_maps=3,
    final=("model.norm",),
    rotary=True,
)
_GEMMA = replace(_LLAMA, ffn_norm="pre_feedforward_layernorm")

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": replace(_BERT, body="electra", layers="electra.encoder.layer"),
    "distilbert": Family(
        kind="masked",
        body="distilbert",
        layers="distilbert.transformer.layer",
        attention="attention",
        attention_norm="sa_layer_norm",
        ffn_norm="output_layer_norm",
        norm_first=False,
        maps={
            "q": "attention.q_lin",
            "k": "attention.k_lin",
            "v": "attention.v_lin",
            "o": "attention.out_lin",
        },
        up="ffn.lin1",
        down="ffn.lin2",
        caches=False,
    ),
    "modernbert": Family(
        kind="masked",
        body="model",
        layers="model.layers",
        attention="attn",
        attention_norm="attn_norm",
        ffn_norm="mlp_norm",
        norm_first=True,
        maps={**dict.fromkeys("qkv", "attn.Wqkv"), "o": "attn.Wo"},
        fused="side by side",
        up="mlp.Wi",
        down="mlp.Wo",
        ffn_maps=3,
        final=("model.final_norm",),
        rotary=True,
        caches=False,
    ),
    "gpt2": Family(
        kind="causal",
        body="transformer",
        layers="transformer.h",
        attention="attn",
        attention_norm="ln_1",
        ffn_norm="ln_2",
        norm_first=True,
        maps={**dict.fromkeys("qkv", "attn.c_attn"), "o": "attn.c_proj"},
        fused="side by side",
        up="mlp.c_fc",
        down="mlp.c_proj",
        final=("transformer.ln_f",),
        input_first=True,
    ),
    "gpt_neo": Family(
        kind="causal",
        body="transformer",
        layers="transformer.h",
        attention="attn.attention",
        attention_norm="ln_1",
        ffn_norm="ln_2",
        norm_first=True,
        maps={
            "q": "attn.attention.q_proj",
            "k": "attn.attention.k_proj",
            "v": "attn.attention.v_proj",
            "o": "attn.attention.out_proj",
        },
        up="mlp.c_fc",
        down="mlp.c_proj",
        final=("transformer.ln_f",),
        interface=False,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "olmo2": replace(
        _LLAMA,
        attention_norm="post_attention_layernorm",
        ffn_norm="post_feedforward_layernorm",
        norm_first=False,
    ),
    "phi3": replace(
        _LLAMA,
        maps={**dict.fromkeys("qkv", "self_attn.qkv_proj"), "o": "self_attn.o_proj"},
        fused="side by side",
        up="mlp.gate_up_proj",
    ),
    "stablelm": _LLAMA,
    "opt": Family(
        kind="causal",
        body="model.decoder",
        layers="model.decoder.layers",
        attention="self_attn",
        attention_norm="self_attn_layer_norm",
        ffn_norm="final_layer_norm",
        norm_first=True,
        maps={**_LLAMA.maps, "o": "self_attn.out_proj"},
        up="fc1",
        down="fc2",
        final=("model.decoder.final_layer_norm", "model.decoder.project_out"),
    ),
    "gpt_neox": Family(
        kind="causal",
        body="gpt_neox",
        layers="gpt_neox.layers",
        attention="attention",
        attention_norm="input_layernorm",
        ffn_norm="post_attention_layernorm",
        norm_first=True,
        maps={**dict.fromkeys("qkv", "attention.query_key_value"), "o": "attention.dense"},
        fused="by head",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        final=("gpt_neox.final_layer_norm",),
        rotary=True,
    ),
}

UNSUPPORTED: Mapping[str, str] = {
    "albert": "its layers are one module, so no layer can have factors of its own",
    "deberta-v2": "its attention adds terms of relative positions by code of its own",
    "falcon": "its attention is code of its own, not transformers' exchangeable one",
}
"""Types that are often asked for, and what stands in the way of their exact evaluation."""
