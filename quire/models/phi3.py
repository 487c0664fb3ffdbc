"""Phi-3 and Phi-3.5: Llama whose checkpoints hold q, k, v as one matrix and gate, up as another."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig, Epsilon
from quire.layers.mlp import GatedMLP


class Phi3Config(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Phi-3 adds."""

    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: Count | None = None


class Phi3(Decoder):
    """Fused matrices in the checkpoint, a window where the config has one."""

    config: Phi3Config

    def attention(self, index: int) -> AttentionPlan:
        """Queries, keys and values from one module."""
        fused = ("qkv_proj", "qkv_proj", "qkv_proj")
        return replace(super().attention(index), window=self.config.sliding_window, names=fused)

    def mlp(self, b: Build) -> GatedMLP:
        """Gate and up from one module."""
        fused = ("gate_up_proj", "gate_up_proj", "down_proj")
        return GatedMLP(b, self.config.hidden_size, self.config.intermediate_size, names=fused)


def build(facts: ModelFacts, build: Build) -> Phi3:
    """The model of a checkpoint."""
    return Phi3(typed(facts.config, Phi3Config, f"{facts.path}/config.json"), facts, build)
