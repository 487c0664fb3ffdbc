"""gpt-oss: attention sinks, a window in every other layer, biases everywhere, experts with a clamped gate."""

from dataclasses import replace

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig, Epsilon
from quire.layers.moe import MoE, MoePlan
from quire.layers.window import LayerType, is_windowed


class GptOssConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that gpt-oss adds."""

    rms_norm_eps: Epsilon = 1e-5
    attention_bias: bool = True
    sliding_window: Count | None = 128
    layer_types: list[LayerType] | None = None
    num_experts_per_tok: Count = 4
    num_local_experts: Count = 128

    def window_of(self, index: int) -> int | None:
        """The window of layer `index`; unless the config lists them, layers 0, 2, 4, ... have one."""
        windowed = index % 2 == 0
        if self.layer_types is not None:
            windowed = is_windowed(self.layer_types, index, self.num_hidden_layers)
        return self.sliding_window if windowed else None


class GptOss(Decoder):
    """Sinks; experts of a form of their own."""

    config: GptOssConfig

    def attention(self, index: int) -> AttentionPlan:
        """With sinks, biases and the window of every other layer."""
        c = self.config
        return replace(
            super().attention(index),
            window=c.window_of(index),
            sinks=True,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
        )

    def mlp(self, b: Build) -> MoE:
        """Experts, in every layer; a softmax over the chosen is one over all, made to sum to 1."""
        c = self.config
        plan = MoePlan(
            c.hidden_size,
            c.intermediate_size,
            c.num_local_experts,
            c.num_experts_per_tok,
            normalize=True,
            router="router",
            router_bias=True,
            gate="clamped",
            bias=True,
            arrangement="woven",
        )
        return MoE(b, plan)


def build(facts: ModelFacts, build: Build) -> GptOss:
    """The model of a checkpoint."""
    return GptOss(typed(facts.config, GptOssConfig, f"{facts.path}/config.json"), facts, build)
