"""DeepSeek-V2 and V2-Lite: latent attention; experts chosen by a softmax, in some within groups."""

from typing import Literal

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.build import Build
from quire.layers.decoder import Count
from quire.layers.latent_decoder import LatentConfig, LatentDecoder
from quire.layers.moe import MoePlan, SharedPlan


class DeepseekV2Config(LatentConfig, frozen=True, kw_only=True):
    """Fields of config.json that DeepSeek-V2 adds, or has other defaults for."""

    moe_intermediate_size: Count = 1407
    n_routed_experts: Count = 64
    n_shared_experts: Count = 2
    topk_method: Literal["greedy", "group_limited_greedy"] = "greedy"


class DeepseekV2(LatentDecoder):
    """A group counts as its best expert."""

    config: DeepseekV2Config

    def experts(self) -> MoePlan:
        """What the experts of a layer are like. Raises CheckpointError for weights that nobody was trained with."""
        c = self.config
        if c.norm_topk_prob:
            raise CheckpointError("config.json: norm_topk_prob=true is not supported for deepseek_v2")
        grouped = c.topk_method == "group_limited_greedy"
        return MoePlan(
            c.hidden_size,
            c.moe_intermediate_size,
            c.n_routed_experts,
            c.num_experts_per_tok,
            normalize=False,
            groups=c.n_group or 1 if grouped else 1,
            top_groups=c.topk_group or 1 if grouped else 1,
            scale=c.routed_scaling_factor,
            wide_router=True,
            shared=SharedPlan(c.moe_intermediate_size * c.n_shared_experts),
        )


def build(facts: ModelFacts, build: Build) -> DeepseekV2:
    """The model of a checkpoint."""
    return DeepseekV2(typed(facts.config, DeepseekV2Config, f"{facts.path}/config.json"), facts, build)
