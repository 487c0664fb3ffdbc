"""GLM-4-9B of 2024: rope on neighbouring values of half of each head, and gate and up as one matrix."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig, Epsilon
from quire.layers.mlp import GatedMLP


class GlmConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that GLM adds."""

    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Epsilon = 0.00000015625
    num_key_value_heads: Count | None = 2
    head_dim: Count | None = 128
    attention_bias: bool = True


class Glm(Decoder):
    """Another rope, another feed-forward matrix."""

    config: GlmConfig

    def attention(self, index: int) -> AttentionPlan:
        """Neighbours rotate; biases on queries, keys and values."""
        return replace(super().attention(index), neighbours=True, qkv_bias=self.config.attention_bias)

    def mlp(self, b: Build) -> GatedMLP:
        """Gate and up from one module."""
        fused = ("gate_up_proj", "gate_up_proj", "down_proj")
        return GatedMLP(b, self.config.hidden_size, self.config.intermediate_size, names=fused)


def build(facts: ModelFacts, build: Build) -> Glm:
    """The model of a checkpoint."""
    return Glm(typed(facts.config, GlmConfig, f"{facts.path}/config.json"), facts, build)
