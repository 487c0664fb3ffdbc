"""Mixtral: Llama with experts in every layer, chosen by a softmax over those that are chosen."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import PreNorm
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig, Epsilon
from quire.layers.moe import MoE, MoePlan


class MixtralConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Mixtral adds."""

    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: Count | None = None
    num_experts_per_tok: Count = 2
    num_local_experts: Count = 8


class Mixtral(Decoder):
    """Experts, under names of their own."""

    config: MixtralConfig

    def layer(self, b: Build, index: int) -> PreNorm:
        """With experts."""
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        experts = MoE(b / "block_sparse_moe", self.experts())
        return PreNorm(b, norms, Attention(b / "self_attn", self.attention(index)), experts)

    def attention(self, index: int) -> AttentionPlan:
        """With the window, in every layer."""
        return replace(super().attention(index), window=self.config.sliding_window)

    def experts(self) -> MoePlan:
        """What the experts of a layer are like."""
        c = self.config
        return MoePlan(
            c.hidden_size,
            c.intermediate_size,
            c.num_local_experts,
            c.num_experts_per_tok,
            normalize=True,
            names=("w1", "w3", "w2"),
        )


def build(facts: ModelFacts, build: Build) -> Mixtral:
    """The model of a checkpoint."""
    return Mixtral(typed(facts.config, MixtralConfig, f"{facts.path}/config.json"), facts, build)
