"""Tiny configurations of the families, with whatever their real models have and others lack."""

from typing import Any

VOCABULARY = 120

_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.1,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
_GROUPED = _SIZES | {"num_key_value_heads": 2}
_ROBERTA = _SIZES | {"max_position_embeddings": 66, "pad_token_id": 1}
_WINDOW = {"sliding_window": 9}  # shorter than most rows
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

CONFIGS: dict[str, dict[str, Any]] = {
    "xlm-roberta": {"model_type": "xlm-roberta", **_ROBERTA},
    "camembert": {"model_type": "camembert", **_ROBERTA},
    "electra": {"model_type": "electra", **_SIZES, "embedding_size": 16},
    "distilbert": {
        "model_type": "distilbert", "vocab_size": VOCABULARY, "dim": 32, "n_layers": 3,
        "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64, "initializer_range": 0.1,
    },
    "modernbert": {
        "model_type": "modernbert", **_SIZES, "local_attention": 8, "global_attn_every_n_layers": 3,
        "cls_token_id": 2, "sep_token_id": 3,
    },
    "gpt2 whose scores are not scaled": {
        "model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4,
        "n_positions": 64, "initializer_range": 0.1, "scale_attn_weights": False,
    },
    "gpt_neo": {
        "model_type": "gpt_neo", **_SIZES, "num_heads": 4, "num_layers": 3, "window_size": 9,
        "attention_types": [[["local", "global", "local"], 1]],
    },
    "llama": {"model_type": "llama", **_GROUPED},
    "llama with wide heads and biases": {
        "model_type": "llama", **_GROUPED, "head_dim": 12, "attention_bias": True, "mlp_bias": True,
    },
    "llama of tied embeddings": {"model_type": "llama", **_GROUPED, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", **_GROUPED, **_WINDOW},
    "qwen2": {
        "model_type": "qwen2", **_GROUPED, **_WINDOW, "use_sliding_window": True,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", **_GROUPED, "head_dim": 8},
    "smollm3": {"model_type": "smollm3", **_GROUPED, "no_rope_layer_interval": 2},
    "gemma2": {
        "model_type": "gemma2", **_GROUPED, **_WINDOW, **_MIXED, "head_dim": 16,
        "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "model_type": "gemma3_text", **_GROUPED, **_WINDOW, **_MIXED, "head_dim": 16,
        "query_pre_attn_scalar": 24, "final_logit_softcapping": 3.0,
    },
    "olmo2": {"model_type": "olmo2", **_GROUPED},
    "phi3": {"model_type": "phi3", **_GROUPED, **_WINDOW},
    "stablelm": {"model_type": "stablelm", **_GROUPED, "use_qkv_bias": True},
    "stablelm of parallel residuals": {
        "model_type": "stablelm", **_GROUPED, "use_parallel_residual": True, "qk_layernorm": True,
    },
    "opt": {"model_type": "opt", **_SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "opt whose norms come last": {
        "model_type": "opt", **_SIZES, "ffn_dim": 64, "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "gpt_neox": {"model_type": "gpt_neox", **_SIZES},
    "gpt_neox of sequential residuals": {
        "model_type": "gpt_neox", **_SIZES, "use_parallel_residual": False,
    },
}  # fmt: skip
