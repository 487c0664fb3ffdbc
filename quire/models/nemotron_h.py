"""Nemotron-H, Nemotron 3: Mamba, attention without rope, feed-forward parts and experts without gates, a layer each."""

from dataclasses import replace
from typing import Literal

from msgspec import structs

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import Single
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, Epsilon, Names
from quire.layers.grouped import RoutedConfig, by_sigmoid
from quire.layers.mamba import Mamba, MambaPlan
from quire.layers.mlp import MLP, MLPPlan
from quire.layers.moe import MoE, MoePlan, SharedPlan
from quire.layers.norm import Norm, RMSNorm

KINDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
"""Layers as letters, in older configs."""
OLD_NAMES = {"mamba": "linear_attention", "attention": "full_attention"}


class NemotronHConfig(RoutedConfig, frozen=True, kw_only=True):
    """Fields of config.json that Nemotron-H adds."""

    num_hidden_layers: Count = 1  # of no use: the list of layers counts
    num_key_value_heads: Count | None = 8
    head_dim: Count | None = 128
    layers_block_type: list[str] | None = None
    hybrid_override_pattern: str | None = None
    layer_norm_epsilon: Epsilon = 1e-5
    mlp_hidden_act: Literal["relu2", "silu", "gelu"] = "relu2"
    mlp_bias: bool = False
    mamba_hidden_act: Literal["silu"] = "silu"
    mamba_num_heads: Count = 128
    mamba_head_dim: Count = 64
    ssm_state_size: Count = 128
    n_groups: Count = 8
    conv_kernel: Count = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    time_step_min: float = 0.001
    n_routed_experts: Count = 8
    num_experts_per_tok: Count = 2
    moe_intermediate_size: Count = 7688
    moe_shared_expert_intermediate_size: Count = 7688
    moe_latent_size: None = None
    n_group: Count | None = 1
    topk_group: Count | None = 1
    norm_topk_prob: bool = True

    @property
    def kinds(self) -> list[str]:
        """What the layers are. Raises CheckpointError where the config does not say."""
        if self.layers_block_type is not None:
            return [OLD_NAMES.get(kind, kind) for kind in self.layers_block_type]
        if self.hybrid_override_pattern is None:
            raise CheckpointError("config.json: nemotron_h needs layers_block_type or hybrid_override_pattern")
        return [KINDS.get(letter, letter) for letter in self.hybrid_override_pattern]


class NemotronH(Decoder):
    """Layers of one part each, under names of their own."""

    names = Names("backbone", "embeddings", norm="norm_f")
    config: NemotronHConfig

    def layer(self, b: Build, index: int) -> Single:
        """A part of the kind that the config names."""
        c, kind, at = self.config, self.config.kinds[index], b / "mixer"
        part: Mamba | Attention | MLP | MoE
        if kind == "linear_attention":
            part = Mamba(at, self.mamba())
        elif kind == "full_attention":
            part = Attention(at, self.attention(index))
        elif kind == "mlp":
            names = ("up_proj", "down_proj")
            part = MLP(at, MLPPlan(c.hidden_size, c.intermediate_size, c.mlp_hidden_act, names, c.mlp_bias))
        elif kind == "moe":
            part = MoE(at, self.experts())
        else:
            known = ", ".join(KINDS.values())
            raise CheckpointError(f"config.json: layer {index} of nemotron_h is of kind {kind!r}; known: {known}")
        return Single(b, self.norm_at(b / "norm"), part)

    def attention(self, index: int) -> AttentionPlan:
        """Without rope."""
        return replace(super().attention(index), rope=None)

    def mamba(self) -> MambaPlan:
        """What a Mamba layer is like."""
        c = self.config
        return MambaPlan(
            hidden=c.hidden_size,
            heads=c.mamba_num_heads,
            groups=c.n_groups,
            head_dim=c.mamba_head_dim,
            state=c.ssm_state_size,
            width=c.conv_kernel,
            bounds=(c.time_step_min, float("inf")),
            eps=c.layer_norm_epsilon,
            bias=c.use_bias,
            conv_bias=c.use_conv_bias,
        )

    def experts(self) -> MoePlan:
        """What the experts of a layer are like."""
        c = self.config
        if c.mlp_hidden_act != "relu2":
            raise CheckpointError(f"config.json: mlp_hidden_act={c.mlp_hidden_act!r} of experts is not supported")
        shared = SharedPlan(c.moe_shared_expert_intermediate_size, gated=False, bias=c.mlp_bias)
        return replace(by_sigmoid(c, shared), gate="relu2", fused=("up_proj", "down_proj"))

    def norm_at(self, b: Build) -> Norm:
        """With the epsilon under its other name."""
        return RMSNorm(b, self.config.hidden_size, self.config.layer_norm_epsilon)


def build(facts: ModelFacts, build: Build) -> NemotronH:
    """The model of a checkpoint."""
    config = typed(facts.config, NemotronHConfig, f"{facts.path}/config.json")
    return NemotronH(structs.replace(config, num_hidden_layers=len(config.kinds)), facts, build)
