"""Qwen3 with a mixture of experts in all or some of its layers (Qwen3-30B-A3B, Qwen3-235B-A22B)."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import PreNorm
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig
from quire.layers.moe import MoE, MoePlan
from quire.layers.sparse import is_sparse


class Qwen3MoeConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Qwen3 with experts adds."""

    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Count | None = 4096
    moe_intermediate_size: Count = 768
    num_experts_per_tok: Count = 8
    num_experts: Count | None = None
    num_local_experts: Count | None = None
    norm_topk_prob: bool = False
    decoder_sparse_step: Count = 1
    mlp_only_layers: list[int] | None = None

    @property
    def experts(self) -> int:
        """Experts of a layer; newer configs call them local."""
        return self.num_experts or self.num_local_experts or 128


class Qwen3Moe(Decoder):
    """Norms on query and key heads; experts."""

    config: Qwen3MoeConfig

    def layer(self, b: Build, index: int) -> PreNorm:
        """With experts, or with the plain feed-forward part in the layers that the config names."""
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        mlp = MoE(b / "mlp", self.experts()) if is_sparse(self.config, index) else self.mlp(b / "mlp")
        return PreNorm(b, norms, Attention(b / "self_attn", self.attention(index)), mlp)

    def attention(self, index: int) -> AttentionPlan:
        """With head norms, and what the config may add; a window counts for all layers."""
        c = self.config
        return replace(
            super().attention(index),
            window=c.sliding_window if c.use_sliding_window else None,
            head_norm_eps=c.rms_norm_eps,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
        )

    def experts(self) -> MoePlan:
        """What the experts of a layer are like."""
        c = self.config
        return MoePlan(c.hidden_size, c.moe_intermediate_size, c.experts, c.num_experts_per_tok, c.norm_topk_prob)


def build(facts: ModelFacts, build: Build) -> Qwen3Moe:
    """The model of a checkpoint."""
    return Qwen3Moe(typed(facts.config, Qwen3MoeConfig, f"{facts.path}/config.json"), facts, build)
