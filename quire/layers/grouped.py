"""What DeepSeek's and GLM's configs say of experts in groups, and the choice that both make."""

from typing import Literal

from quire.layers.decoder import Count, DecoderConfig
from quire.layers.moe import MoePlan, SharedPlan


class GroupedConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that these families have."""

    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    moe_intermediate_size: Count
    n_routed_experts: Count
    n_shared_experts: Count
    num_experts_per_tok: Count
    n_group: Count | None = None
    topk_group: Count | None = None
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = False
    first_k_dense_replace: int = 0


def by_sigmoid(c: GroupedConfig) -> MoePlan:
    """Experts chosen by sigmoids and a bias, within groups that count as their two best."""
    return MoePlan(
        c.hidden_size,
        c.moe_intermediate_size,
        c.n_routed_experts,
        c.num_experts_per_tok,
        c.norm_topk_prob,
        score="sigmoid",
        groups=c.n_group or 1,
        top_groups=c.topk_group or 1,
        group_best=2,
        scale=c.routed_scaling_factor,
        choice_bias=True,
        wide_router=True,
        shared=SharedPlan(c.moe_intermediate_size * c.n_shared_experts),
    )
