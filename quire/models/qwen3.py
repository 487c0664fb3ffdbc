"""Qwen3, dense: Llama with an RMS norm on every query and key head."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Decoder
from quire.layers.window import UpperWindowConfig


class Qwen3Config(UpperWindowConfig, frozen=True, kw_only=True):
    """Fields of config.json that Qwen3 adds."""

    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False


class Qwen3(Decoder):
    """Norms on query and key heads."""

    config: Qwen3Config

    def attention(self, index: int) -> AttentionPlan:
        """With head norms, and what the config may add."""
        c = self.config
        return replace(
            super().attention(index),
            window=c.window_of(index),
            head_norm_eps=c.rms_norm_eps,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
        )


def build(facts: ModelFacts, build: Build) -> Qwen3:
    """The model of a checkpoint."""
    return Qwen3(typed(facts.config, Qwen3Config, f"{facts.path}/config.json"), facts, build)
