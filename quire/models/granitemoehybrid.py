"""Granite 4: Mamba layers, a few of attention, often without rope; four multipliers; experts beside one for all."""

from dataclasses import replace
from typing import Annotated, Literal

import msgspec
from torch import Tensor

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import FeedForward, PreNorm
from quire.layers.build import Build
from quire.layers.decoder import Cap, Count, Decoder, DecoderConfig
from quire.layers.mamba import Bound, Mamba, MambaPlan, step_bounds
from quire.layers.mlp import GatedMLP
from quire.layers.moe import MoE, MoePlan, Together
from quire.ops.step import StepInputs


class GraniteHybridConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Granite 4 adds."""

    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    embedding_multiplier: float = 1.0
    attention_multiplier: Cap = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: Cap = 1.0
    num_local_experts: Annotated[int, msgspec.Meta(ge=0, le=1 << 24)] = 8
    num_experts_per_tok: Count = 2
    shared_intermediate_size: Count = 1024
    position_embedding_type: str | None = None
    layer_types: list[Literal["linear_attention", "full_attention", "mamba", "attention"]] | None = None
    mamba_n_heads: Count = 128
    mamba_n_groups: Count = 1
    mamba_d_state: Count = 256
    mamba_d_head: Count | Literal["auto"] = "auto"
    mamba_d_conv: Count = 4
    mamba_expand: Count = 2
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: tuple[Bound, Bound] | None = None

    def attends(self, index: int) -> bool:
        """Whether layer `index` has attention."""
        return self.layer_types is not None and self.layer_types[index] in ("full_attention", "attention")


class GraniteHybrid(Decoder):
    """Mamba, multipliers, experts."""

    config: GraniteHybridConfig

    def layer(self, b: Build, index: int) -> PreNorm:
        """With attention or Mamba, and with what both parts add multiplied."""
        c, norms = self.config, (self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm"))
        mixer: Attention | Mamba
        if c.attends(index):
            mixer = Attention(b / "self_attn", self.attention(index))
        else:
            mixer = Mamba(b / "mamba", self.mamba())
        return PreNorm(b, norms, mixer, self.feed_forward(b), c.residual_multiplier)

    def attention(self, index: int) -> AttentionPlan:
        """With a scale of its own, and with rope only if the config says so."""
        c = self.config
        rope, bias = self.rope if c.position_embedding_type == "rope" else None, c.attention_bias
        return replace(super().attention(index), scale=c.attention_multiplier, rope=rope, qkv_bias=bias, out_bias=bias)

    def mamba(self) -> MambaPlan:
        """What a Mamba layer is like."""
        c = self.config
        inner = c.mamba_expand * c.hidden_size
        return MambaPlan(
            hidden=c.hidden_size,
            heads=c.mamba_n_heads,
            groups=c.mamba_n_groups,
            head_dim=inner // c.mamba_n_heads if c.mamba_d_head == "auto" else c.mamba_d_head,
            state=c.mamba_d_state,
            width=c.mamba_d_conv,
            bounds=step_bounds(c.time_step_limit),
            eps=c.rms_norm_eps,
            bias=c.mamba_proj_bias,
            conv_bias=c.mamba_conv_bias,
        )

    def feed_forward(self, b: Build) -> FeedForward:
        """The part for all tokens, and experts if there are any."""
        c, fused = self.config, ("input_linear", "input_linear", "output_linear")
        shared = GatedMLP(b / "shared_mlp", c.hidden_size, c.shared_intermediate_size, names=fused)
        if not c.num_local_experts:
            return shared
        plan = MoePlan(
            c.hidden_size,
            c.intermediate_size,
            c.num_local_experts,
            c.num_experts_per_tok,
            normalize=True,
            router="router.layer",
            module=None,
            fused=("input_linear.weight", "output_linear.weight"),
        )
        return Together(MoE(b / "block_sparse_moe", plan), shared)

    def embed(self, step: StepInputs) -> Tensor:
        """Multiplied rows of the table."""
        return super().embed(step) * self.config.embedding_multiplier

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab), divided."""
        return self.head.forward(hidden) / self.config.logits_scaling


def build(facts: ModelFacts, build: Build) -> GraniteHybrid:
    """The model of a checkpoint."""
    return GraniteHybrid(typed(facts.config, GraniteHybridConfig, f"{facts.path}/config.json"), facts, build)
