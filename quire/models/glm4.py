"""GLM-4-0414: norms before and after each block, rope on neighbouring values, gate and up as one matrix."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import Sandwich
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig, Epsilon
from quire.layers.mlp import GatedMLP


class Glm4Config(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that GLM-4 adds."""

    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Epsilon = 0.00000015625
    num_key_value_heads: Count | None = 2
    head_dim: Count | None = 128
    attention_bias: bool = True


class Glm4(Decoder):
    """Sandwich norms, another rope, another feed-forward matrix."""

    config: Glm4Config

    def layer(self, b: Build, index: int) -> Sandwich:
        """Attention and feed-forward, each between two norms."""
        norms = (
            self.norm_at(b / "input_layernorm"),
            self.norm_at(b / "post_self_attn_layernorm"),
            self.norm_at(b / "post_attention_layernorm"),
            self.norm_at(b / "post_mlp_layernorm"),
        )
        return Sandwich(b, norms, Attention(b / "self_attn", self.attention(index)), self.mlp(b / "mlp"))

    def attention(self, index: int) -> AttentionPlan:
        """Neighbours rotate; biases on queries, keys and values."""
        return replace(super().attention(index), neighbours=True, qkv_bias=self.config.attention_bias)

    def mlp(self, b: Build) -> GatedMLP:
        """Gate and up from one module."""
        fused = ("gate_up_proj", "gate_up_proj", "down_proj")
        return GatedMLP(b, self.config.hidden_size, self.config.intermediate_size, names=fused)


def build(facts: ModelFacts, build: Build) -> Glm4:
    """The model of a checkpoint."""
    return Glm4(typed(facts.config, Glm4Config, f"{facts.path}/config.json"), facts, build)
