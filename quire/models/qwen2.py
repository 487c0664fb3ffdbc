"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and a window in the upper layers of some."""

from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Decoder, PreNorm
from quire.layers.mlp import GatedMLP
from quire.layers.window import UpperWindowConfig


class Qwen2Config(UpperWindowConfig, frozen=True, kw_only=True):
    """Fields of config.json that Qwen2 adds."""

    hidden_act: Literal["silu"] = "silu"


class Qwen2(Decoder):
    """Biases on q, k and v; a window above `max_window_layers` if `use_sliding_window`."""

    config: Qwen2Config

    def layer(self, b: Build, index: int) -> PreNorm:
        """Pre-norm attention and feed-forward."""
        c = self.config
        plan = AttentionPlan(
            hidden=c.hidden_size,
            heads=c.num_attention_heads,
            kv_heads=c.kv_heads,
            head_dim=c.head_size,
            rope=self.rope,
            window=c.window_of(index),
            qkv_bias=True,
        )
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        return PreNorm(
            b, norms, Attention(b / "self_attn", plan), GatedMLP(b / "mlp", c.hidden_size, c.intermediate_size)
        )


def build(facts: ModelFacts, build: Build) -> Qwen2:
    """The model of a checkpoint."""
    return Qwen2(typed(facts.config, Qwen2Config, f"{facts.path}/config.json"), facts, build)
