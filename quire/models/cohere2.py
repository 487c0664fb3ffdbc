"""Command R7B and Command A: parallel blocks; three layers with window and rope to one with neither."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import Parallel
from quire.layers.build import Build
from quire.layers.classic import ClassicConfig, ClassicDecoder
from quire.layers.decoder import Count
from quire.layers.window import LayerType, is_windowed


class Cohere2Config(ClassicConfig, frozen=True, kw_only=True):
    """Fields of config.json that this family adds."""

    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: bool = True
    logit_scale: float = 0.0625
    attention_bias: bool = False
    sliding_window: Count = 4096
    sliding_window_pattern: Count = 4
    layer_types: list[LayerType] | None = None

    def is_windowed(self, index: int) -> bool:
        """Whether layer `index` has a window; unless the config lists them, all but every fourth have."""
        if self.layer_types is None:
            return (index + 1) % self.sliding_window_pattern != 0
        return is_windowed(self.layer_types, index, self.num_hidden_layers)


class Cohere2(ClassicDecoder):
    """Rope on neighbouring values, in layers with a window alone."""

    config: Cohere2Config
    norm_bias = False

    def layer(self, b: Build, index: int) -> Parallel:
        """Both parts after one norm."""
        attention = Attention(b / "self_attn", self.attention(index))
        return Parallel(b, (self.norm_at(b / "input_layernorm"),), attention, self.mlp(b / "mlp"))

    def attention(self, index: int) -> AttentionPlan:
        """Window and rope, or neither."""
        c, windowed = self.config, self.config.is_windowed(index)
        return replace(
            super().attention(index),
            rope=self.rope if windowed else None,
            neighbours=True,
            window=c.sliding_window if windowed else None,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab), scaled."""
        return self.head.forward(hidden) * self.config.logit_scale


def build(facts: ModelFacts, build: Build) -> Cohere2:
    """The model of a checkpoint."""
    return Cohere2(typed(facts.config, Cohere2Config, f"{facts.path}/config.json"), facts, build)
