"""Llama 4, text: attention within chunks and, in every fourth layer, over everything without rope; weighed inputs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import PreNorm
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig, Epsilon
from quire.layers.heads import LogScaling
from quire.layers.mlp import GatedMLP
from quire.layers.moe import MoE, MoePlan, SharedPlan


class Llama4Config(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Llama 4 adds."""

    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Epsilon = 1e-5
    head_dim: Count | None = 128
    attention_bias: bool = False
    intermediate_size_mlp: Count = 16384
    num_experts_per_tok: Count = 1
    num_local_experts: Count = 16
    moe_layers: list[int] | None = None
    interleave_moe_layer_step: Count = 1
    use_qk_norm: bool = True
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: Count = 4
    attention_chunk_size: Count | None = 8192
    layer_types: list[Literal["full_attention", "chunked_attention"]] | None = None
    attn_temperature_tuning: bool | int = True
    floor_scale: Count = 8192
    attn_scale: float = 0.1

    def turns(self, index: int) -> bool:
        """Whether layer `index` has rope; a list has 1 where it has."""
        if self.no_rope_layers:
            return bool(self._entry(self.no_rope_layers, "no_rope_layers", index))
        return (index + 1) % self.no_rope_layer_interval != 0

    def chunk(self, index: int) -> int | None:
        """The chunk of layer `index`; unless the config lists them, layers with rope have one."""
        chunked = self.turns(index)
        if self.layer_types is not None:
            chunked = self._entry(self.layer_types, "layer_types", index) == "chunked_attention"
        return self.attention_chunk_size if chunked else None

    def is_sparse(self, index: int) -> bool:
        """Whether layer `index` has experts."""
        if self.moe_layers is not None:
            return index in self.moe_layers
        return (index + 1) % self.interleave_moe_layer_step == 0

    def _entry(self, entries: Sequence[int | str], name: str, index: int) -> int | str:
        if len(entries) < self.num_hidden_layers:
            raise CheckpointError(
                f"config.json: {name} has {len(entries)} entries, num_hidden_layers is {self.num_hidden_layers}"
            )
        return entries[index]


class Llama4(Decoder):
    """Layers of two kinds."""

    config: Llama4Config

    def layer(self, b: Build, index: int) -> PreNorm:
        """With experts, or with a plain feed-forward part of a size of its own."""
        c, at = self.config, b / "feed_forward"
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        sparse = c.is_sparse(index)
        mlp = MoE(at, self.experts()) if sparse else GatedMLP(at, c.hidden_size, c.intermediate_size_mlp)
        return PreNorm(b, norms, Attention(b / "self_attn", self.attention(index)), mlp)

    def attention(self, index: int) -> AttentionPlan:
        """With rope, then norms without weights; or without rope, and queries that grow with their position."""
        c, turns = self.config, self.config.turns(index)
        plan = replace(
            super().attention(index), chunk=c.chunk(index), qkv_bias=c.attention_bias, out_bias=c.attention_bias
        )
        if not turns:
            growth = LogScaling(c.attn_scale, c.floor_scale, ahead=1) if c.attn_temperature_tuning else None
            return replace(plan, rope=None, growth=growth)
        if c.use_qk_norm and self.rope.kind in ("yarn", "longrope"):
            raise CheckpointError(f"config.json: rope of the kind {self.rope.kind} and use_qk_norm are not supported")
        # A plain rotation leaves the length of a head as it is, so the norm may come first.
        norm = c.rms_norm_eps if c.use_qk_norm else None
        return replace(plan, neighbours=True, head_norm_eps=norm, head_norm_weight=False)

    def experts(self) -> MoePlan:
        """What the experts of a layer are like."""
        c = self.config
        return MoePlan(
            c.hidden_size,
            c.intermediate_size,
            c.num_local_experts,
            c.num_experts_per_tok,
            normalize=False,
            score="sigmoid",
            router="router",
            weigh_input=True,
            arrangement="turned",
            shared=SharedPlan(c.intermediate_size, "shared_expert"),
        )


def build(facts: ModelFacts, build: Build) -> Llama4:
    """The model of a checkpoint."""
    return Llama4(typed(facts.config, Llama4Config, f"{facts.path}/config.json"), facts, build)
