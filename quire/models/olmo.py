"""OLMo 1: Llama with layer norms that have neither weight nor bias, and bounded queries, keys and values."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.classic import ClassicConfig, ClassicDecoder
from quire.layers.decoder import Cap


class OlmoConfig(ClassicConfig, frozen=True, kw_only=True):
    """Fields of config.json that OLMo adds."""

    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    clip_qkv: Cap | None = None


class Olmo(ClassicDecoder):
    """Bare norms, bounds."""

    config: OlmoConfig
    norm_weight = norm_bias = False

    def attention(self, index: int) -> AttentionPlan:
        """With bounds, and biases where the config has them."""
        bias = self.config.attention_bias
        return replace(super().attention(index), bound=self.config.clip_qkv, qkv_bias=bias, out_bias=bias)


def build(facts: ModelFacts, build: Build) -> Olmo:
    """The model of a checkpoint."""
    return Olmo(typed(facts.config, OlmoConfig, f"{facts.path}/config.json"), facts, build)
