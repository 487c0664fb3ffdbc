"""What GGUF files of each architecture have otherwise than Llama's: names, fields and how values lie. Data only.

Names of tensors and keys are those of github.com/ggml-org/llama.cpp (gguf-py's constants, convert_hf_to_gguf.py).
Read by `gguf.py`.
"""

from dataclasses import dataclass, field
from typing import Any

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate", "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj", "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.gate_proj", "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}  # fmt: skip
"""Modules as files call them, and checkpoints of safetensors; those of layers without the layer."""


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture.

    Attributes:
        model_type: as config.json calls it.
        names: of modules, where they are not those of NAMES.
        fields: of config.json, by the key of the metadata behind the architecture's name; left out where there is none.
        fixed: fields that no key tells.
        told: fields that are true where layers have a tensor of this name.
        permuted: whether queries and keys lie in neighbouring pairs.
        wide: layers of the size whose scores are divided by the root of hidden size / heads, not of head_dim.
        dtype: of activations, where float16 does not hold what layers add up; None goes by the file's tensors.
        layers: what names of layers begin with, up to their number.
        turned: modules whose matrices other checkpoints hold as (inputs, outputs).
        other: a tensor that the first layer of another model by the same name has, and what that is.
    """

    model_type: str
    names: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    permuted: bool = False
    wide: int | None = None
    dtype: str | None = None
    layers: str = "model.layers"
    turned: tuple[str, ...] = ()
    other: "tuple[str, Family] | None" = None


AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
SANDWICH = {**AFTER, "ffn_norm": "pre_feedforward_layernorm"}
LAYER_EPS = "attention.layer_norm_epsilon"
WINDOW = {"sliding_window": "attention.sliding_window"}
CAPS = {name: name for name in ("attn_logit_softcapping", "final_logit_softcapping")}
# Files hold what Gemma's norms multiply with, and not that less 1.
WHOLE_NORMS = {"norm_offset": 0.0}
FALCON = {
    "token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f",
    "attn_qkv": "self_attention.query_key_value", "attn_output": "self_attention.dense",
    "attn_norm": "input_layernorm", "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
}  # fmt: skip
FALCON_FIELDS = {
    "ffn_hidden_size": "feed_forward_length",
    "num_kv_heads": "attention.head_count_kv",
    "layer_norm_epsilon": LAYER_EPS,
}
# Files hold all queries before all keys.
FALCON_FIXED = {"new_decoder_architecture": True, "woven_heads": False}
FALCON_40B = Family(
    "falcon",
    {**FALCON, "attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"},
    FALCON_FIELDS,
    {**FALCON_FIXED, "num_ln_in_parallel_attn": 2},
    layers="transformer.h",
)
"""Falcon 40B and 180B, with a norm for each part of a layer."""

FAMILIES = {
    "llama": Family("llama", permuted=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "qwen2moe": Family(
        "qwen2_moe",
        fields={"shared_expert_intermediate_size": "expert_shared_feed_forward_length"},
        fixed={"norm_topk_prob": False},
    ),
    "qwen3moe": Family("qwen3_moe"),
    "gemma": Family("gemma", fixed=WHOLE_NORMS, dtype="bfloat16"),
    "gemma2": Family("gemma2", SANDWICH, {**WINDOW, **CAPS}, WHOLE_NORMS, wide=46, dtype="bfloat16"),
    "gemma3": Family(
        "gemma3_text",
        SANDWICH,
        WINDOW,
        {**WHOLE_NORMS, "rope_local_base_freq": 10000.0},
        wide=62,
        dtype="bfloat16",
    ),
    "phi3": Family("phi3", {"ffn_up": "mlp.gate_up_proj"}, WINDOW),
    "olmo2": Family("olmo2", AFTER),
    "granite": Family(
        "granite",
        fields={
            "attention_multiplier": "attention.scale",
            "embedding_multiplier": "embedding_scale",
            "residual_multiplier": "residual_scale",
            "logits_scaling": "logit_scale",
        },
        permuted=True,
    ),
    "starcoder2": Family(
        "starcoder2", {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}, {**WINDOW, "norm_epsilon": LAYER_EPS}
    ),
    "stablelm": Family(
        "stablelm",
        fields={"layer_norm_eps": LAYER_EPS, "use_parallel_residual": "use_parallel_residual"},
        told={"use_qkv_bias": "attn_q.bias", "qk_layernorm": "attn_q_norm.weight"},
    ),
    "falcon": Family(
        "falcon",
        FALCON,
        FALCON_FIELDS,
        {**FALCON_FIXED, "num_ln_in_parallel_attn": 1},
        layers="transformer.h",
        other=("attn_norm_2.weight", FALCON_40B),
    ),
    "gpt2": Family(
        "gpt2",
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        {
            "n_embd": "embedding_length",
            "n_layer": "block_count",
            "n_head": "attention.head_count",
            "n_positions": "context_length",
            "n_inner": "feed_forward_length",
            "layer_norm_epsilon": LAYER_EPS,
        },
        layers="transformer.h",
        turned=("c_attn", "c_proj", "c_fc"),
    ),
    "glm4": Family(
        "glm4",
        {
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_up": "mlp.gate_up_proj",
        },
        told={"attention_bias": "attn_q.bias"},
        dtype="bfloat16",
    ),
    "command-r": Family(
        "cohere",
        fields={"layer_norm_eps": LAYER_EPS, "logit_scale": "logit_scale"},
        told={"use_qk_norm": "attn_q_norm.weight"},
    ),
}
"""What files call architectures, and what they are."""
