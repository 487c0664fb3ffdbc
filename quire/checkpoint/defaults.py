"""What configs of a model type leave out because transformers has it as a default, where a reader needs it early.

Most defaults stand in the typed config of a family. Here are those that say how long a context is, how heads are
rotated or how large the vocabulary is, which is wanted before the family is known. Used by `read.py`.
"""

from typing import Any

_FALCON = {"max_position_embeddings": 2048}
_GEMMA3 = {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}
_GTE = {"max_position_embeddings": 8192, "hidden_act": "gelu", "rope_theta": 1.6e5, "type_vocab_size": 1}
_NOMIC = {
    "vocab_size": 30528,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rope_theta": 1000.0,
    "type_vocab_size": 2,
}
_QWEN3_NEXT = {"max_position_embeddings": 32768, "partial_rotary_factor": 0.25}
_GPT_OSS = {
    "rope_theta": 1.5e5,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}
DEFAULTS: dict[str, dict[str, Any]] = {
    # Its scores depend on distances, so it has no end; it was taught on so much.
    "bloom": {"max_position_embeddings": 2048},
    "cohere": {"max_position_embeddings": 8192, "rope_theta": 5e5},
    "falcon": _FALCON,
    "gemma3_text": _GEMMA3,
    "glm": {"partial_rotary_factor": 0.5},
    "glm4": {"partial_rotary_factor": 0.5},
    "glm4_moe": {"partial_rotary_factor": 0.5},
    "gpt_neox": {"partial_rotary_factor": 0.25},
    "gpt_oss": _GPT_OSS,
    "gte": _GTE,
    "llama4_text": {"rope_theta": 5e5},
    # Its state has no end; Codestral Mamba was tried on so much.
    "mamba2": {"max_position_embeddings": 262144},
    "mixtral": {"rope_theta": 1e6},
    "nomic_bert": _NOMIC,
    "phi3": {"original_max_position_embeddings": 4096},
    "phi": {"partial_rotary_factor": 0.5},
    # Falcon 40B, before it had a field for its architecture.
    "RefinedWeb": {"new_decoder_architecture": True},
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "qwen3_5_text": _QWEN3_NEXT,
    "qwen3_next": _QWEN3_NEXT,
    "smollm3": {"rope_theta": 2e6},
    "stablelm": {"partial_rotary_factor": 0.25},
}
OLD_TYPES = {"RefinedWeb": "falcon", "RefinedWebModel": "falcon", "new": "gte"}
"""Model types of code that came with checkpoints, and what transformers calls them since."""
OLD_NAMES = {
    "d_model": "hidden_size",
    "dim": "hidden_size",
    "layer_norm_epsilon": "layer_norm_eps",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_head_kv": "num_kv_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "max_seq_len": "max_position_embeddings",
    "seq_length": "max_position_embeddings",
    "n_positions": "max_position_embeddings",
    # Behind n_positions, so that it counts: what lies between asks for a stretched rope.
    "max_trained_positions": "max_position_embeddings",
    "rotary_emb_base": "rope_theta",
    "rotary_emb_fraction": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
}
"""Fields by other names, and those that the readers use."""


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with its model type's defaults, and old names beside the new ones; what the config says counts."""
    kind = config.get("model_type")
    defaults = DEFAULTS.get(str(kind), {})
    if isinstance(kind, str) and kind in OLD_TYPES:
        return completed({**defaults, **config, "model_type": OLD_TYPES[kind]})
    renamed = {new: config[old] for old, new in OLD_NAMES.items() if config.get(old) is not None}
    return {**defaults, **renamed, **config}
