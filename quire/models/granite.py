"""Granite 3: Llama with four multipliers: of embeddings, of scores, of what each block adds, of logits."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import PreNorm
from quire.layers.build import Build
from quire.layers.decoder import Cap, Decoder, DecoderConfig
from quire.layers.mlp import GatedMLP
from quire.ops.step import StepInputs


class GraniteConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Granite adds."""

    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: float = 1.0
    attention_multiplier: Cap = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: Cap = 1.0


class Granite(Decoder):
    """The multipliers."""

    config: GraniteConfig

    def layer(self, b: Build, index: int) -> PreNorm:
        """With what both parts add multiplied."""
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        attention = Attention(b / "self_attn", self.attention(index))
        return PreNorm(b, norms, attention, self.mlp(b / "mlp"), self.config.residual_multiplier)

    def attention(self, index: int) -> AttentionPlan:
        """With a scale of its own."""
        c = self.config
        bias = c.attention_bias
        return replace(super().attention(index), scale=c.attention_multiplier, qkv_bias=bias, out_bias=bias)

    def mlp(self, b: Build) -> GatedMLP:
        """With or without biases."""
        return GatedMLP(b, self.config.hidden_size, self.config.intermediate_size, bias=self.config.mlp_bias)

    def embed(self, step: StepInputs) -> Tensor:
        """Multiplied rows of the table."""
        return super().embed(step) * self.config.embedding_multiplier

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab), divided."""
        return self.head.forward(hidden) / self.config.logits_scaling


def build(facts: ModelFacts, build: Build) -> Granite:
    """The model of a checkpoint."""
    return Granite(typed(facts.config, GraniteConfig, f"{facts.path}/config.json"), facts, build)
