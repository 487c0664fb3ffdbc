"""Qwen3.5 with a mixture of experts, text: like Qwen3.5, experts with one for all tokens in every layer."""

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.blocks import FeedForward
from quire.layers.build import Build
from quire.layers.decoder import Count
from quire.layers.delta_decoder import DeltaConfig, DeltaDecoder
from quire.layers.moe import MoE
from quire.layers.sparse import with_shared


class Qwen35MoeConfig(DeltaConfig, frozen=True, kw_only=True):
    """Fields of config.json that Qwen3.5 with experts adds."""

    num_key_value_heads: Count | None = 2
    intermediate_size: Count = 512  # of no use: all layers have experts
    moe_intermediate_size: Count = 512
    shared_expert_intermediate_size: Count = 512
    num_experts_per_tok: Count = 8
    num_experts: Count = 256


class Qwen35Moe(DeltaDecoder):
    """Projections of delta nets apart; experts."""

    interleaved = False
    config: Qwen35MoeConfig

    def feed_forward(self, b: Build, index: int) -> FeedForward:
        """With experts."""
        return MoE(b, with_shared(self.config, norm=True))


def build(facts: ModelFacts, build: Build) -> Qwen35Moe:
    """The model of a checkpoint."""
    return Qwen35Moe(typed(facts.config, Qwen35MoeConfig, f"{facts.path}/config.json"), facts, build)
