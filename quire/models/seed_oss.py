"""Seed-OSS: Llama with biases on queries, keys and values, and heads of a size of their own."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig
from quire.layers.mlp import GatedMLP


class SeedOssConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Seed-OSS adds, or has other defaults for."""

    hidden_act: Literal["silu"] = "silu"
    head_dim: Count | None = 128
    attention_bias: bool = True
    attention_out_bias: bool = False
    mlp_bias: bool = False


class SeedOss(Decoder):
    """Biases where the config asks for them."""

    config: SeedOssConfig

    def attention(self, index: int) -> AttentionPlan:
        """With biases on either side, each by itself."""
        c = self.config
        return replace(super().attention(index), qkv_bias=c.attention_bias, out_bias=c.attention_out_bias)

    def mlp(self, b: Build) -> GatedMLP:
        """With or without biases."""
        c = self.config
        return GatedMLP(b, c.hidden_size, c.intermediate_size, bias=c.mlp_bias)


def build(facts: ModelFacts, build: Build) -> SeedOss:
    """The model of a checkpoint."""
    return SeedOss(typed(facts.config, SeedOssConfig, f"{facts.path}/config.json"), facts, build)
