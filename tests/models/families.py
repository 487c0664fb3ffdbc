"""Configs of tiny checkpoints, one for each family; those with experts and with recurrent state have files beside."""

from typing import Any

from tests.models.experts import EXPERTS
from tests.models.hybrids import HYBRIDS

# Odd sizes on purpose: head_dim is not hidden / heads, heads share keys, and the vocabulary does not divide by 2.
BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Older families know no such fields; ... leaves one out.
PLAIN: dict[str, Any] = {"head_dim": ..., "num_key_value_heads": ...}
FAMILY: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"head_dim": 12},
    "qwen3": {},
    "qwen3_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "num_hidden_layers": 3,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
    "phi3": {"head_dim": 12},
    "cohere": {"head_dim": 12},
    "cohere2": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "falcon": {**PLAIN, "multi_query": True, "parallel_attn": True, "bias": False},
    "gemma": {},
    "gemma2": {"sliding_window": 8, "num_hidden_layers": 3, "query_pre_attn_scalar": 24},
    "gemma3_text": {
        "sliding_window": 8,
        "num_hidden_layers": 3,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
    "glm": {},
    "glm4": {},
    "gpt2": {**PLAIN, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {
        **PLAIN,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
    },
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
        "head_dim": 12,
    },
    "ministral": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.3,
        },
    },
    "olmo": {"clip_qkv": 0.7},
    "olmo2": {"head_dim": 12},
    "opt": {**PLAIN, "ffn_dim": 56, "word_embed_proj_dim": 48},
    "phi": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    "stablelm": {
        "head_dim": ...,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
    },
    "seed_oss": {},
    "starcoder2": {"sliding_window": 9},
    "smollm3": {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "head_dim": 12},
}

FAMILY |= EXPERTS | HYBRIDS
