"""Command R7B and Command A: parallel blocks; three layers with window and rope to one with neither."""

from dataclasses import replace

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.cohere import CommandConfig, CommandDecoder
from quire.layers.decoder import Count
from quire.layers.window import LayerType, is_windowed


class Cohere2Config(CommandConfig, frozen=True, kw_only=True):
    """Fields of config.json that this family adds."""

    sliding_window: Count = 4096
    sliding_window_pattern: Count = 4
    layer_types: list[LayerType] | None = None

    def is_windowed(self, index: int) -> bool:
        """Whether layer `index` has a window; unless the config lists them, all but every fourth have."""
        if self.layer_types is None:
            return (index + 1) % self.sliding_window_pattern != 0
        return is_windowed(self.layer_types, index, self.num_hidden_layers)


class Cohere2(CommandDecoder):
    """Rope in layers with a window alone."""

    config: Cohere2Config

    def attention(self, index: int) -> AttentionPlan:
        """Window and rope, or neither."""
        c, windowed = self.config, self.config.is_windowed(index)
        return replace(
            super().attention(index),
            rope=self.rope if windowed else None,
            window=c.sliding_window if windowed else None,
        )


def build(facts: ModelFacts, build: Build) -> Cohere2:
    """The model of a checkpoint."""
    return Cohere2(typed(facts.config, Cohere2Config, f"{facts.path}/config.json"), facts, build)
