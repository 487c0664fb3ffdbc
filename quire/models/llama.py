"""Llama 1 to 3.x, and the many checkpoints of other makers that follow it."""

from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Decoder, DecoderConfig, PreNorm
from quire.layers.mlp import GatedMLP


class LlamaConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Llama adds."""

    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False


class Llama(Decoder):
    """The plain decoder; biases where the config asks for them."""

    config: LlamaConfig

    def layer(self, b: Build, index: int) -> PreNorm:
        """Pre-norm attention and feed-forward."""
        c = self.config
        plan = AttentionPlan(
            hidden=c.hidden_size,
            heads=c.num_attention_heads,
            kv_heads=c.kv_heads,
            head_dim=c.head_size,
            rope=self.rope,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
        )
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        mlp = GatedMLP(b / "mlp", c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        return PreNorm(b, norms, Attention(b / "self_attn", plan), mlp)


def build(facts: ModelFacts, build: Build) -> Llama:
    """The model of a checkpoint."""
    return Llama(typed(facts.config, LlamaConfig, f"{facts.path}/config.json"), facts, build)
