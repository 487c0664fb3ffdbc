"""Gemma 1: Llama with norms that apply 1 + weight, scaled embeddings and GELU."""

from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.build import Build
from quire.layers.decoder import Count, DecoderConfig
from quire.layers.gemma import GemmaDecoder


class GemmaConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Gemma adds. Older configs say "gelu" and mean its approximation."""

    tie_word_embeddings: bool = True
    head_dim: Count | None = 256
    hidden_act: Literal["gelu", "gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    hidden_activation: Literal["gelu_pytorch_tanh"] | None = None
    attention_bias: Literal[False] = False
    use_bidirectional_attention: Literal[False] | None = None


class Gemma(GemmaDecoder):
    """Nothing of its own."""


def build(facts: ModelFacts, build: Build) -> Gemma:
    """The model of a checkpoint."""
    return Gemma(typed(facts.config, GemmaConfig, f"{facts.path}/config.json"), facts, build)
