"""Qwen2 and Qwen1.5 with a mixture of experts: beside the chosen ones one for all tokens, behind a gate."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import PreNorm
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig
from quire.layers.moe import MoE
from quire.layers.sparse import is_sparse, with_shared
from quire.layers.window import LayerType, is_windowed


class Qwen2MoeConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Qwen2 with experts adds."""

    hidden_act: Literal["silu"] = "silu"
    qkv_bias: bool = True
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[LayerType] | None = None
    moe_intermediate_size: Count = 1408
    shared_expert_intermediate_size: Count = 5632
    num_experts_per_tok: Count = 4
    num_experts: Count = 60
    norm_topk_prob: bool = False
    decoder_sparse_step: Count = 1
    mlp_only_layers: list[int] | None = None

    def window_of(self, index: int) -> int | None:
        """The window of layer `index`; unless the config lists them, every other one of the first has one."""
        if not self.use_sliding_window or not self.sliding_window:
            return None
        windowed = index % 2 == 0 and index < self.max_window_layers
        if self.layer_types is not None:
            windowed = is_windowed(self.layer_types, index, self.num_hidden_layers)
        return self.sliding_window if windowed else None


class Qwen2Moe(Decoder):
    """Biases on q, k and v; experts."""

    config: Qwen2MoeConfig

    def layer(self, b: Build, index: int) -> PreNorm:
        """With experts, or with the plain feed-forward part in the layers that the config names."""
        c = self.config
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        mlp = MoE(b / "mlp", with_shared(c, c.norm_topk_prob)) if is_sparse(c, index) else self.mlp(b / "mlp")
        return PreNorm(b, norms, Attention(b / "self_attn", self.attention(index)), mlp)

    def attention(self, index: int) -> AttentionPlan:
        """With biases and windows as the config says."""
        c = self.config
        return replace(super().attention(index), window=c.window_of(index), qkv_bias=c.qkv_bias)


def build(facts: ModelFacts, build: Build) -> Qwen2Moe:
    """The model of a checkpoint."""
    return Qwen2Moe(typed(facts.config, Qwen2MoeConfig, f"{facts.path}/config.json"), facts, build)
