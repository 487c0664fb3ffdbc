"""The decoder of gated delta nets and gated attention that the Qwen3-Next and Qwen3.5 families share."""

from dataclasses import replace
from typing import ClassVar, Literal

from quire.base.errors import CheckpointError
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import FeedForward, PreNorm
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig
from quire.layers.delta_net import DeltaPlan, GatedDeltaNet


class DeltaConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that these families have."""

    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    num_key_value_heads: Count | None = 4
    head_dim: Count | None = 256
    layer_types: list[Literal["linear_attention", "full_attention"]] | None = None
    full_attention_interval: Count = 4
    linear_conv_kernel_dim: Count = 4
    linear_key_head_dim: Count = 128
    linear_value_head_dim: Count = 128
    linear_num_key_heads: Count = 16
    linear_num_value_heads: Count = 32

    def attends(self, index: int) -> bool:
        """Whether layer `index` has attention; unless the config lists them, every so many layers one has."""
        if self.layer_types is None:
            return (index + 1) % self.full_attention_interval == 0
        if len(self.layer_types) != self.num_hidden_layers:
            raise CheckpointError(
                f"config.json: layer_types has {len(self.layer_types)} entries, num_hidden_layers is "
                f"{self.num_hidden_layers}"
            )
        return self.layer_types[index] == "full_attention"


class DeltaDecoder(Decoder):
    """A family says how projections are stored and what the feed-forward parts are."""

    norm_offset = 1.0
    interleaved: ClassVar[bool]
    """As of `DeltaPlan`."""
    config: DeltaConfig

    def layer(self, b: Build, index: int) -> PreNorm:
        """With attention or a delta net."""
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        mixer: Attention | GatedDeltaNet
        if self.config.attends(index):
            mixer = Attention(b / "self_attn", self.attention(index))
        else:
            mixer = GatedDeltaNet(b / "linear_attn", self.delta())
        return PreNorm(b, norms, mixer, self.feed_forward(b / "mlp", index))

    def attention(self, index: int) -> AttentionPlan:
        """With norms of heads, and gates beside the queries."""
        c = self.config
        return replace(
            super().attention(index),
            head_norm_eps=c.rms_norm_eps,
            head_norm_offset=1.0,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
            gated=True,
        )

    def delta(self) -> DeltaPlan:
        """What a delta net is like. Raises CheckpointError where heads do not fit together."""
        c = self.config
        if c.linear_num_value_heads % c.linear_num_key_heads:
            raise CheckpointError(
                f"config.json: linear_num_value_heads={c.linear_num_value_heads} is no multiple of "
                f"linear_num_key_heads={c.linear_num_key_heads}"
            )
        return DeltaPlan(
            hidden=c.hidden_size,
            key_heads=c.linear_num_key_heads,
            value_heads=c.linear_num_value_heads,
            key_dim=c.linear_key_head_dim,
            value_dim=c.linear_value_head_dim,
            width=c.linear_conv_kernel_dim,
            eps=c.rms_norm_eps,
            interleaved=self.interleaved,
        )

    def feed_forward(self, b: Build, index: int) -> FeedForward:
        """The feed-forward part of layer `index`."""
        return self.mlp(b)
