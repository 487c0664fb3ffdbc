"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and a window in the upper layers of some."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Decoder
from quire.layers.window import UpperWindowConfig


class Qwen2Config(UpperWindowConfig, frozen=True, kw_only=True):
    """Fields of config.json that Qwen2 adds."""

    hidden_act: Literal["silu"] = "silu"


class Qwen2(Decoder):
    """Biases on q, k and v; a window above `max_window_layers` if `use_sliding_window`."""

    config: Qwen2Config

    def attention(self, index: int) -> AttentionPlan:
        """With biases, and the window of the upper layers."""
        return replace(super().attention(index), window=self.config.window_of(index), qkv_bias=True)


def build(facts: ModelFacts, build: Build) -> Qwen2:
    """The model of a checkpoint."""
    return Qwen2(typed(facts.config, Qwen2Config, f"{facts.path}/config.json"), facts, build)
