"""StarCoder2: Llama's attention with layer norms, biases and a feed-forward part without a gate."""

from dataclasses import replace
from typing import Literal

import msgspec

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.classic import ClassicConfig, ClassicDecoder
from quire.layers.decoder import Count, Epsilon
from quire.layers.mlp import MLP, ActivationName, MLPPlan


class Starcoder2Config(ClassicConfig, frozen=True, kw_only=True):
    """Fields of config.json that StarCoder2 adds."""

    layer_norm_eps: Epsilon = msgspec.field(name="norm_epsilon", default=1e-5)
    num_key_value_heads: Count | None = 2
    hidden_act: ActivationName = "gelu_pytorch_tanh"
    norm_type: Literal["layer_norm"] = "layer_norm"
    mlp_type: Literal["default"] = "default"
    use_bias: bool = True
    sliding_window: Count | None = None
    tie_word_embeddings: bool = True


class Starcoder2(ClassicDecoder):
    """Biases, a window."""

    config: Starcoder2Config

    def attention(self, index: int) -> AttentionPlan:
        """With biases, and the window where the config has one."""
        c = self.config
        return replace(super().attention(index), window=c.sliding_window, qkv_bias=c.use_bias, out_bias=c.use_bias)

    def mlp(self, b: Build) -> MLP:
        """Up, GELU and down."""
        c = self.config
        plan = MLPPlan(c.hidden_size, c.intermediate_size, c.hidden_act, ("c_fc", "c_proj"), c.use_bias)
        return MLP(b, plan)


def build(facts: ModelFacts, build: Build) -> Starcoder2:
    """The model of a checkpoint."""
    return Starcoder2(typed(facts.config, Starcoder2Config, f"{facts.path}/config.json"), facts, build)
