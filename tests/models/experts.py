"""What configs of tiny checkpoints with experts add to `checkpoints.BASE`."""

from typing import Any

GROUPS: dict[str, Any] = {
    "num_hidden_layers": 3,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
}
LATENT: dict[str, Any] = {
    **GROUPS,
    "first_k_dense_replace": 1,
    "q_lora_rank": 22,
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "head_dim": 8,
    "v_head_dim": 14,
    "num_key_value_heads": 4,
}
EXPERTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {**LATENT, "topk_method": "group_limited_greedy"},
    "deepseek_v3": LATENT,
    "gpt_oss": {
        "num_local_experts": 6,
        "intermediate_size": 20,
        "num_experts_per_tok": 3,
        "sliding_window": 6,
        "num_hidden_layers": 3,
    },
    "llama4_text": {
        "num_hidden_layers": 4,
        "no_rope_layers": [1, 0, 1, 1],
        "attention_chunk_size": 6,
        "moe_layers": [0, 1, 3],
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "intermediate_size": 20,
        "intermediate_size_mlp": 36,
        "floor_scale": 5,
        "attn_scale": 0.3,
    },
    "mixtral": {"num_local_experts": 6, "intermediate_size": 20, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "head_dim": 12,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 28,
        "num_hidden_layers": 3,
        "mlp_only_layers": [1],
    },
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 20, "head_dim": 12, "clip_qkv": 1.5},
    "glm4_moe": {**GROUPS, "use_qk_norm": True, "attention_bias": True},
}
