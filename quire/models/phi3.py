"""Phi-3 and Phi-3.5: Llama whose checkpoints hold q, k, v as one matrix and gate, up as another; some with longrope."""

from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig, PreNorm
from quire.layers.mlp import GatedMLP


class Phi3Config(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Phi-3 adds."""

    hidden_act: Literal["silu"] = "silu"
    sliding_window: Count | None = None


class Phi3(Decoder):
    """Fused matrices in the checkpoint, a window where the config has one."""

    config: Phi3Config

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
            names=("qkv_proj", "qkv_proj", "qkv_proj"),
        )
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        fused = ("gate_up_proj", "gate_up_proj")
        mlp = GatedMLP(b / "mlp", c.hidden_size, c.intermediate_size, names=fused)
        return PreNorm(b, norms, Attention(b / "self_attn", plan), mlp)


def build(facts: ModelFacts, build: Build) -> Phi3:
    """The model of a checkpoint."""
    return Phi3(typed(facts.config, Phi3Config, f"{facts.path}/config.json"), facts, build)
