"""Gemma 3, text: five layers with a window and a rope of their own to one without, norms on query and key heads."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.checkpoint.rope import rope_facts
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Cap, Count, DecoderConfig, soft_capped
from quire.layers.gemma import SandwichDecoder
from quire.layers.window import LayerType, is_windowed


class Gemma3Config(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Gemma 3 adds; its multimodal checkpoints leave out most of them."""

    vocab_size: Count = 262208
    num_attention_heads: Count = 8
    num_key_value_heads: Count | None = 4
    head_dim: Count | None = 256
    tie_word_embeddings: bool = True
    hidden_activation: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    attention_bias: Literal[False] = False
    use_bidirectional_attention: Literal[False] | None = False
    query_pre_attn_scalar: Cap = 256.0
    sliding_window: Count = 4096
    sliding_window_pattern: Count = 6
    layer_types: list[LayerType] | None = None
    attn_logit_softcapping: None = None
    final_logit_softcapping: Cap | None = None

    def is_windowed(self, index: int) -> bool:
        """Whether layer `index` has a window; unless the config lists them, all but every sixth have."""
        if self.layer_types is None:
            return (index + 1) % self.sliding_window_pattern != 0
        return is_windowed(self.layer_types, index, self.num_hidden_layers)


class Gemma3(SandwichDecoder):
    """Two ropes."""

    config: Gemma3Config

    def __init__(self, config: Gemma3Config, facts: ModelFacts, b: Build) -> None:
        self.local_rope = rope_facts(facts.config, "sliding_attention")
        super().__init__(config, facts, b)

    def attention(self, index: int) -> AttentionPlan:
        """With head norms; the window comes with its rope."""
        c, windowed = self.config, self.config.is_windowed(index)
        return replace(
            super().attention(index),
            rope=self.local_rope if windowed else self.rope,
            window=c.sliding_window if windowed else None,
            scale=c.query_pre_attn_scalar**-0.5,
            head_norm_eps=c.rms_norm_eps,
            head_norm_offset=self.norm_offset,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab), bounded where the config says so."""
        return soft_capped(self.head.forward(hidden), self.config.final_logit_softcapping)


def build(facts: ModelFacts, build: Build) -> Gemma3:
    """The model of a checkpoint."""
    return Gemma3(typed(facts.config, Gemma3Config, f"{facts.path}/config.json"), facts, build)
