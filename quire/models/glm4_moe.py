"""GLM-4.5 and 4.6: experts chosen by sigmoids and a bias, within groups; the first layers have none."""

from dataclasses import replace

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import PreNorm
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, Epsilon
from quire.layers.grouped import GroupedConfig, by_sigmoid
from quire.layers.moe import MoE, MoePlan


class Glm4MoeConfig(GroupedConfig, frozen=True, kw_only=True):
    """Fields of config.json that GLM-4 with experts adds."""

    rms_norm_eps: Epsilon = 1e-5
    use_qk_norm: bool = False
    moe_intermediate_size: Count = 1408
    num_experts_per_tok: Count = 8
    n_shared_experts: Count = 1
    n_routed_experts: Count = 128
    n_group: Count | None = 1
    topk_group: Count | None = 1
    first_k_dense_replace: int = 1
    norm_topk_prob: bool = True


class Glm4Moe(Decoder):
    """Half of each head is rotated; experts after the first layers."""

    config: Glm4MoeConfig

    def layer(self, b: Build, index: int) -> PreNorm:
        """With experts, or with the plain feed-forward part in the first layers."""
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        sparse = index >= self.config.first_k_dense_replace
        mlp = MoE(b / "mlp", self.experts()) if sparse else self.mlp(b / "mlp")
        return PreNorm(b, norms, Attention(b / "self_attn", self.attention(index)), mlp)

    def attention(self, index: int) -> AttentionPlan:
        """With biases and head norms as the config says."""
        c = self.config
        return replace(
            super().attention(index),
            head_norm_eps=c.rms_norm_eps if c.use_qk_norm else None,
            qkv_bias=c.attention_bias,
        )

    def experts(self) -> MoePlan:
        """What the experts of a layer are like."""
        return by_sigmoid(self.config, self.config.shared)


def build(facts: ModelFacts, build: Build) -> Glm4Moe:
    """The model of a checkpoint."""
    return Glm4Moe(typed(facts.config, Glm4MoeConfig, f"{facts.path}/config.json"), facts, build)
