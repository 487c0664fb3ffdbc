"""Granite 4: Mamba layers, a few of attention, often without rope; four multipliers; experts beside one for all."""

from dataclasses import replace
from typing import Annotated, Literal

import msgspec

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import FeedForward, PreNorm
from quire.layers.build import Build
from quire.layers.decoder import Count
from quire.layers.granite import MultipliedConfig, MultipliedDecoder
from quire.layers.mamba import Bound, Mamba, MambaPlan, step_bounds
from quire.layers.mlp import GatedMLP
from quire.layers.moe import MoE, MoePlan, ParallelSum


class GraniteHybridConfig(MultipliedConfig, frozen=True, kw_only=True):
    """Fields of config.json that Granite 4 adds."""

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


class GraniteHybrid(MultipliedDecoder):
    """Mamba, experts."""

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
        """With rope only if the config says so."""
        rope = self.rope if self.config.position_embedding_type == "rope" else None
        return replace(super().attention(index), rope=rope)

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
        return ParallelSum(MoE(b / "block_sparse_moe", plan), shared)


def build(facts: ModelFacts, build: Build) -> GraniteHybrid:
    """The model of a checkpoint."""
    return GraniteHybrid(typed(facts.config, GraniteHybridConfig, f"{facts.path}/config.json"), facts, build)
