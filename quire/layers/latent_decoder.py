"""The decoder of latent attention and experts that the DeepSeek families share: plain layers first, then experts."""

from typing import Literal

import msgspec

from quire.base.errors import CheckpointError
from quire.layers.blocks import PreNorm
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder
from quire.layers.grouped import GroupedConfig
from quire.layers.latent import LatentAttention, LatentPlan
from quire.layers.moe import MoE, MoePlan


class LatentConfig(GroupedConfig, frozen=True, kw_only=True):
    """Fields of config.json that these families have."""

    q_lora_rank: Count | None = 1536
    kv_lora_rank: Count = 512
    qk_nope_head_dim: Count = 128
    qk_rope_head_dim: Count = 64
    v_head_dim: Count = 128
    moe_layer_freq: Literal[1] = 1


class LatentDecoder(Decoder):
    """A family says how experts are chosen."""

    config: LatentConfig

    def layer(self, b: Build, index: int) -> PreNorm:
        """With experts, or with the plain feed-forward part in the first layers."""
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        sparse = index >= self.config.first_k_dense_replace
        mlp = MoE(b / "mlp", self.experts()) if sparse else self.mlp(b / "mlp")
        return PreNorm(b, norms, LatentAttention(b / "self_attn", self.latent()), mlp)

    def latent(self) -> LatentPlan:
        """What attention is like. Raises CheckpointError for what it cannot be."""
        c = self.config
        if c.attention_bias:
            raise CheckpointError("config.json: attention_bias=true is not supported with latent attention")
        return LatentPlan(
            hidden=c.hidden_size,
            heads=c.num_attention_heads,
            query_rank=c.q_lora_rank,
            rank=c.kv_lora_rank,
            plain=c.qk_nope_head_dim,
            turned=c.qk_rope_head_dim,
            value=c.v_head_dim,
            rope=msgspec.structs.replace(self.rope, partial_rotary_factor=1.0),
            neighbours=True,
        )

    def experts(self) -> MoePlan:
        """What the experts of a layer are like."""
        raise NotImplementedError
