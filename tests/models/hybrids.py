"""What configs of tiny checkpoints with recurrent state add to `checkpoints.BASE`."""

from typing import Any

DELTA: dict[str, Any] = {
    # A head whose result is next to nothing is normed all the same: with 1e-6 that would bring rounding into the open.
    "rms_norm_eps": 1e-3,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 10,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
}
DELTA_EXPERTS: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
}
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next": {**DELTA, **DELTA_EXPERTS, "mlp_only_layers": [1]},
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": {**DELTA, **DELTA_EXPERTS, "intermediate_size": ...},
    "mamba2": {
        "intermediate_size": ...,
        "num_attention_heads": ...,
        "num_key_value_heads": ...,
        "max_position_embeddings": ...,
        "head_dim": 12,
        "num_heads": 8,
        "state_size": 10,
        "n_groups": 2,
    },
    "granitemoehybrid": {
        "head_dim": ...,
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "intermediate_size": 20,
        "shared_intermediate_size": 28,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "mamba_n_heads": 8,
        "mamba_d_state": 10,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "nemotron_h": {
        "num_hidden_layers": ...,
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe", "linear_attention"],
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "moe_shared_expert_intermediate_size": 28,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
        "mamba_num_heads": 8,
        "mamba_head_dim": 10,
        "ssm_state_size": 12,
        "n_groups": 2,
        "time_step_min": 0.3,
    },
}
