"""Phi-1, 1.5 and 2: attention and feed-forward side by side after one layer norm, biases everywhere, the head too."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import Parallel
from quire.layers.build import Build
from quire.layers.classic import ClassicConfig, ClassicDecoder
from quire.layers.decoder import Names
from quire.layers.mlp import MLP, ActivationName, MLPPlan


class PhiConfig(ClassicConfig, frozen=True, kw_only=True):
    """Fields of config.json that Phi adds."""

    hidden_act: ActivationName = "gelu_new"
    qk_layernorm: Literal[False] = False


class Phi(ClassicDecoder):
    """Biases, rope on a part of each head."""

    config: PhiConfig
    names = Names(norm="final_layernorm")
    head_bias = True

    def layer(self, b: Build, index: int) -> Parallel:
        """Both parts after one norm."""
        attention = Attention(b / "self_attn", self.attention(index))
        return Parallel(b, (self.norm_at(b / "input_layernorm"),), attention, self.mlp(b / "mlp"))

    def attention(self, index: int) -> AttentionPlan:
        """With biases."""
        return replace(super().attention(index), qkv_bias=True, out_bias=True, out_name="dense")

    def mlp(self, b: Build) -> MLP:
        """Up, GELU and down."""
        c = self.config
        return MLP(b, MLPPlan(c.hidden_size, c.intermediate_size, c.hidden_act, ("fc1", "fc2")))


def build(facts: ModelFacts, build: Build) -> Phi:
    """The model of a checkpoint."""
    return Phi(typed(facts.config, PhiConfig, f"{facts.path}/config.json"), facts, build)
