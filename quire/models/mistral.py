"""Mistral: Llama with a sliding window in every layer, where the config has one."""

from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig, PreNorm
from quire.layers.mlp import GatedMLP


class MistralConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Mistral adds."""

    hidden_act: Literal["silu"] = "silu"
    sliding_window: Count | None = 4096


class Mistral(Decoder):
    """Llama with a window."""

    config: MistralConfig

    def layer(self, b: Build, index: int) -> PreNorm:
        """Pre-norm attention and feed-forward."""
        c = self.config
        plan = AttentionPlan(
            hidden=c.hidden_size,
            heads=c.num_attention_heads,
            kv_heads=c.kv_heads,
            head_dim=c.head_size,
            rope=self.rope,
            window=c.sliding_window,
        )
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        return PreNorm(
            b, norms, Attention(b / "self_attn", plan), GatedMLP(b / "mlp", c.hidden_size, c.intermediate_size)
        )


def build(facts: ModelFacts, build: Build) -> Mistral:
    """The model of a checkpoint."""
    return Mistral(typed(facts.config, MistralConfig, f"{facts.path}/config.json"), facts, build)
