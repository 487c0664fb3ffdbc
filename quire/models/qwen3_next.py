"""Qwen3-Next: gated delta nets, every fourth layer gated attention; experts with one for all tokens."""

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.blocks import FeedForward
from quire.layers.build import Build
from quire.layers.decoder import Count
from quire.layers.delta_decoder import DeltaConfig, DeltaDecoder
from quire.layers.moe import MoE
from quire.layers.sparse import is_sparse, with_shared


class Qwen3NextConfig(DeltaConfig, frozen=True, kw_only=True):
    """Fields of config.json that Qwen3-Next adds."""

    num_key_value_heads: Count | None = 2
    moe_intermediate_size: Count = 512
    shared_expert_intermediate_size: Count = 512
    num_experts_per_tok: Count = 10
    num_experts: Count = 512
    norm_topk_prob: bool = True
    decoder_sparse_step: Count = 1
    mlp_only_layers: list[int] | None = None


class Qwen3Next(DeltaDecoder):
    """Projections of delta nets woven by key head; experts."""

    interleaved = True
    config: Qwen3NextConfig

    def feed_forward(self, b: Build, index: int) -> FeedForward:
        """With experts, or the plain feed-forward part in the layers that the config names."""
        c = self.config
        return MoE(b, with_shared(c, c.norm_topk_prob)) if is_sparse(c, index) else self.mlp(b)


def build(facts: ModelFacts, build: Build) -> Qwen3Next:
    """The model of a checkpoint."""
    return Qwen3Next(typed(facts.config, Qwen3NextConfig, f"{facts.path}/config.json"), facts, build)
