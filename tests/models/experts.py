"""What configs of tiny checkpoints with experts add to `checkpoints.BASE`."""

from typing import Any

EXPERTS: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        "num_local_experts": 6,
        "intermediate_size": 20,
        "num_experts_per_tok": 3,
        "sliding_window": 6,
        "num_hidden_layers": 3,
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
    "glm4_moe": {
        "num_hidden_layers": 3,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "n_shared_experts": 2,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
        "use_qk_norm": True,
        "attention_bias": True,
    },
}
