"""Qwen3, dense: Llama with an RMS norm on every query and key head."""

from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Decoder, PreNorm
from quire.layers.mlp import GatedMLP
from quire.layers.window import UpperWindowConfig


class Qwen3Config(UpperWindowConfig, frozen=True, kw_only=True):
    """Fields of config.json that Qwen3 adds."""

    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False


class Qwen3(Decoder):
    """Norms on query and key heads."""

    config: Qwen3Config

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
            head_norm_eps=c.rms_norm_eps,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
        )
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        return PreNorm(
            b, norms, Attention(b / "self_attn", plan), GatedMLP(b / "mlp", c.hidden_size, c.intermediate_size)
        )


def build(facts: ModelFacts, build: Build) -> Qwen3:
    """The model of a checkpoint."""
    return Qwen3(typed(facts.config, Qwen3Config, f"{facts.path}/config.json"), facts, build)
