"""SmolLM3: Llama in which every fourth layer has no rotary embedding."""

from dataclasses import replace
from typing import Literal

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig
from quire.layers.mlp import GatedMLP
from quire.layers.window import LayerType, is_windowed


class SmolLM3Config(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that SmolLM3 adds. In `no_rope_layers` a 1 stands for a layer WITH a rotary embedding."""

    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: bool = True
    num_key_value_heads: Count | None = 4
    attention_bias: bool = False
    mlp_bias: bool = False
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: Count = 4
    use_sliding_window: bool = False
    sliding_window: Count | None = None
    layer_types: list[LayerType] | None = None

    def is_rotated(self, index: int) -> bool:
        """Whether layer `index` has a rotary embedding. Raises CheckpointError for a list of another length."""
        listed = self.no_rope_layers
        if listed is None:
            return (index + 1) % self.no_rope_layer_interval != 0
        if len(listed) != self.num_hidden_layers:
            raise CheckpointError(
                f"config.json: no_rope_layers has {len(listed)} entries, num_hidden_layers is {self.num_hidden_layers}"
            )
        return bool(listed[index])

    def window_of(self, index: int) -> int | None:
        """The window of layer `index`; unless the config lists them, the layers without rope have it."""
        if not self.use_sliding_window:
            return None
        if self.layer_types is None:
            return None if self.is_rotated(index) else self.sliding_window
        return self.sliding_window if is_windowed(self.layer_types, index, self.num_hidden_layers) else None


class SmolLM3(Decoder):
    """Layers without rope."""

    config: SmolLM3Config

    def attention(self, index: int) -> AttentionPlan:
        """With or without rope."""
        c = self.config
        return replace(
            super().attention(index),
            rope=self.rope if c.is_rotated(index) else None,
            window=c.window_of(index),
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
        )

    def mlp(self, b: Build) -> GatedMLP:
        """With or without biases."""
        return GatedMLP(b, self.config.hidden_size, self.config.intermediate_size, bias=self.config.mlp_bias)


def build(facts: ModelFacts, build: Build) -> SmolLM3:
    """The model of a checkpoint."""
    return SmolLM3(typed(facts.config, SmolLM3Config, f"{facts.path}/config.json"), facts, build)
