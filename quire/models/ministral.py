"""Ministral 8B: Mistral with a window in the layers that the config lists."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig
from quire.layers.window import LayerType, is_windowed


class MinistralConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Ministral adds."""

    hidden_act: Literal["silu"] = "silu"
    sliding_window: Count | None = 4096
    layer_types: list[LayerType] | None = None

    def window_of(self, index: int) -> int | None:
        """The window of layer `index`; unless the config lists them, all have it."""
        listed = self.layer_types
        windowed = listed is None or is_windowed(listed, index, self.num_hidden_layers)
        return self.sliding_window if windowed else None


class Ministral(Decoder):
    """Windows."""

    config: MinistralConfig

    def attention(self, index: int) -> AttentionPlan:
        """With or without the window."""
        return replace(super().attention(index), window=self.config.window_of(index))


def build(facts: ModelFacts, build: Build) -> Ministral:
    """The model of a checkpoint."""
    return Ministral(typed(facts.config, MinistralConfig, f"{facts.path}/config.json"), facts, build)
