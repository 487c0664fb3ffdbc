"""What configs say of experts in groups, and the choice that DeepSeek, GLM and Nemotron-H make."""

from typing import Literal

from quire.layers.decoder import Count, DecoderConfig
from quire.layers.moe import MoePlan, SharedPlan


class RoutedConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that say how experts are chosen."""

    moe_intermediate_size: Count
    n_routed_experts: Count
    num_experts_per_tok: Count
    n_group: Count | None = None
    topk_group: Count | None = None
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = False


class GroupedConfig(RoutedConfig, frozen=True, kw_only=True):
    """Fields of config.json that DeepSeek and GLM have."""

    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    n_shared_experts: Count
    first_k_dense_replace: int = 0

    @property
    def shared(self) -> SharedPlan:
        """Experts for all tokens, as one."""
        return SharedPlan(self.moe_intermediate_size * self.n_shared_experts)


def by_sigmoid(c: RoutedConfig, shared: SharedPlan) -> MoePlan:
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
        shared=shared,
    )
