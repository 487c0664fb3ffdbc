"""Gemma 2: norms before and after each block, every other layer with a window, scores and logits bounded by tanh."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Cap, Count, DecoderConfig, soft_capped
from quire.layers.gemma import SandwichDecoder
from quire.layers.window import LayerType, is_windowed


class Gemma2Config(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Gemma 2 adds."""

    tie_word_embeddings: bool = True
    hidden_activation: Literal["gelu_pytorch_tanh"] | None = "gelu_pytorch_tanh"
    attention_bias: bool = False
    query_pre_attn_scalar: Cap = 256.0
    sliding_window: Count | None = 4096
    layer_types: list[LayerType] | None = None
    attn_logit_softcapping: Cap | None = 50.0
    final_logit_softcapping: Cap | None = 30.0

    def window_of(self, index: int) -> int | None:
        """The window of layer `index`; unless the config lists them, layers 0, 2, 4, ... have one."""
        if self.layer_types is None:
            windowed = index % 2 == 0
        else:
            windowed = is_windowed(self.layer_types, index, self.num_hidden_layers)
        return self.sliding_window if windowed else None


class Gemma2(SandwichDecoder):
    """Bounds, and a window in every other layer."""

    config: Gemma2Config

    def attention(self, index: int) -> AttentionPlan:
        """A scale of its own, bounded scores, a window in every other layer."""
        c = self.config
        return replace(
            super().attention(index),
            window=c.window_of(index),
            scale=c.query_pre_attn_scalar**-0.5,
            soft_cap=c.attn_logit_softcapping,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab), bounded."""
        return soft_capped(self.head.forward(hidden), self.config.final_logit_softcapping)


def build(facts: ModelFacts, build: Build) -> Gemma2:
    """The model of a checkpoint."""
    return Gemma2(typed(facts.config, Gemma2Config, f"{facts.path}/config.json"), facts, build)
