"""DeepSeek-V3, V3.1 and R1: latent attention; experts chosen by sigmoids and a bias, within groups."""

from dataclasses import replace

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.build import Build
from quire.layers.decoder import Count
from quire.layers.grouped import by_sigmoid
from quire.layers.latent import LatentPlan
from quire.layers.latent_decoder import LatentConfig, LatentDecoder
from quire.layers.moe import MoePlan


class DeepseekV3Config(LatentConfig, frozen=True, kw_only=True):
    """Fields of config.json that DeepSeek-V3 adds, or has other defaults for."""

    moe_intermediate_size: Count = 2048
    n_routed_experts: Count = 256
    n_shared_experts: Count = 1
    num_experts_per_tok: Count = 8
    n_group: Count | None = 8
    topk_group: Count | None = 4
    routed_scaling_factor: float = 2.5
    norm_topk_prob: bool = True
    first_k_dense_replace: int = 3
    rope_interleave: bool = True


class DeepseekV3(LatentDecoder):
    """A group counts as its two best experts."""

    config: DeepseekV3Config

    def latent(self) -> LatentPlan:
        """Rotated as the config says."""
        return replace(super().latent(), neighbours=self.config.rope_interleave)

    def experts(self) -> MoePlan:
        """What the experts of a layer are like."""
        return by_sigmoid(self.config, self.config.shared)


def build(facts: ModelFacts, build: Build) -> DeepseekV3:
    """The model of a checkpoint."""
    return DeepseekV3(typed(facts.config, DeepseekV3Config, f"{facts.path}/config.json"), facts, build)
