"""Qwen3-Next: gated delta nets, every fourth layer gated attention; experts with one for all tokens."""

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.blocks import FeedForward
from quire.layers.build import Build
from quire.layers.decoder import Count
from quire.layers.delta_decoder import DeltaConfig, DeltaDecoder
from quire.layers.moe import MoE, MoePlan, SharedPlan


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

    def is_sparse(self, index: int) -> bool:
        """Whether layer `index` has experts."""
        return index not in (self.mlp_only_layers or []) and (index + 1) % self.decoder_sparse_step == 0


class Qwen3Next(DeltaDecoder):
    """Projections of delta nets woven by key head; experts."""

    woven = True
    config: Qwen3NextConfig

    def feed_forward(self, b: Build, index: int) -> FeedForward:
        """With experts, or the plain feed-forward part in the layers that the config names."""
        return MoE(b, self.experts()) if self.config.is_sparse(index) else self.mlp(b)

    def experts(self) -> MoePlan:
        """What the experts of a layer are like."""
        c = self.config
        return MoePlan(
            c.hidden_size,
            c.moe_intermediate_size,
            c.num_experts,
            c.num_experts_per_tok,
            c.norm_topk_prob,
            shared=SharedPlan(c.shared_expert_intermediate_size, "shared_expert", "shared_expert_gate"),
        )


def build(facts: ModelFacts, build: Build) -> Qwen3Next:
    """The model of a checkpoint."""
    return Qwen3Next(typed(facts.config, Qwen3NextConfig, f"{facts.path}/config.json"), facts, build)
