"""OLMoE: experts in every layer; norms over all query heads and all key heads, then bounds on all three."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Cap, Count, Decoder, DecoderConfig, Epsilon
from quire.layers.moe import MoE, MoePlan


class OlmoeConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that OLMoE adds."""

    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Epsilon = 1e-5
    attention_bias: bool = False
    clip_qkv: Cap | None = None
    num_experts_per_tok: Count = 8
    num_experts: Count = 64
    norm_topk_prob: bool = False


class Olmoe(Decoder):
    """Wide norms; experts."""

    config: OlmoeConfig

    def attention(self, index: int) -> AttentionPlan:
        """With norms before the bounds."""
        c = self.config
        return replace(
            super().attention(index),
            wide_norm_eps=c.rms_norm_eps,
            bound=c.clip_qkv,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
        )

    def mlp(self, b: Build) -> MoE:
        """Experts, in every layer."""
        c = self.config
        plan = MoePlan(c.hidden_size, c.intermediate_size, c.num_experts, c.num_experts_per_tok, c.norm_topk_prob)
        return MoE(b, plan)


def build(facts: ModelFacts, build: Build) -> Olmoe:
    """The model of a checkpoint."""
    return Olmoe(typed(facts.config, OlmoeConfig, f"{facts.path}/config.json"), facts, build)
