"""OLMo 2: norms after each block and none before, and norms over all query heads and all key heads together."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import PostNorm
from quire.layers.build import Build
from quire.layers.decoder import Decoder, DecoderConfig, Epsilon


class Olmo2Config(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that OLMo 2 adds."""

    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    rms_norm_eps: Epsilon = 1e-5


class Olmo2(Decoder):
    """Other norms."""

    config: Olmo2Config

    def layer(self, b: Build, index: int) -> PostNorm:
        """What each block adds is normed."""
        norms = self.norm_at(b / "post_attention_layernorm"), self.norm_at(b / "post_feedforward_layernorm")
        return PostNorm(b, norms, Attention(b / "self_attn", self.attention(index)), self.mlp(b / "mlp"))

    def attention(self, index: int) -> AttentionPlan:
        """With norms over all heads."""
        c = self.config
        bias = c.attention_bias
        return replace(super().attention(index), wide_norm_eps=c.rms_norm_eps, qkv_bias=bias, out_bias=bias)


def build(facts: ModelFacts, build: Build) -> Olmo2:
    """The model of a checkpoint."""
    return Olmo2(typed(facts.config, Olmo2Config, f"{facts.path}/config.json"), facts, build)
