"""Llama 1 to 3.x: the plain decoder, which many checkpoints of other makers follow (Vicuna, Yi, SmolLM 2, ...)."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Decoder, DecoderConfig
from quire.layers.mlp import GatedMLP


class LlamaConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Llama adds."""

    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False


class Llama(Decoder):
    """The plain decoder; biases where the config asks for them."""

    config: LlamaConfig

    def attention(self, index: int) -> AttentionPlan:
        """With or without biases."""
        bias = self.config.attention_bias
        return replace(super().attention(index), qkv_bias=bias, out_bias=bias)

    def mlp(self, b: Build) -> GatedMLP:
        """With or without biases."""
        return GatedMLP(b, self.config.hidden_size, self.config.intermediate_size, bias=self.config.mlp_bias)


def build(facts: ModelFacts, build: Build) -> Llama:
    """The model of a checkpoint."""
    return Llama(typed(facts.config, LlamaConfig, f"{facts.path}/config.json"), facts, build)
