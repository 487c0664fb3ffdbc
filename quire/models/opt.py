"""OPT: learned positions, layer norms, biases everywhere, ReLU."""

from dataclasses import replace
from typing import Literal

import msgspec
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import PreNorm
from quire.layers.build import Build
from quire.layers.classic import ClassicConfig, ClassicDecoder
from quire.layers.decoder import Count, Names
from quire.layers.embedding import Positions
from quire.layers.mlp import MLP, ActivationName, MLPPlan
from quire.ops.step import StepInputs

OFFSET = 2
"""Rows of the table of positions that nobody reads."""


class OptConfig(ClassicConfig, frozen=True, kw_only=True):
    """Fields of config.json, by OPT's names. OPT-350m, which norms after its blocks, is refused by them."""

    intermediate_size: Count = msgspec.field(name="ffn_dim", default=3072)
    max_position_embeddings: Count = 2048
    activation_function: ActivationName = "relu"
    tie_word_embeddings: bool = True
    enable_bias: bool = True
    layer_norm_elementwise_affine: Literal[True] = True
    do_layer_norm_before: Literal[True] = True
    word_embed_proj_dim: Count | None = None


class Opt(ClassicDecoder):
    """Positions are added to the embeddings."""

    config: OptConfig
    names = Names("model.decoder", norm="final_layer_norm")

    def __init__(self, config: OptConfig, facts: ModelFacts, b: Build) -> None:
        if config.word_embed_proj_dim not in (None, config.hidden_size):
            raise CheckpointError(
                f"config.json: word_embed_proj_dim={config.word_embed_proj_dim} differs from "
                f"hidden_size={config.hidden_size}, which is not supported"
            )
        super().__init__(config, facts, b)
        where = b / "model.decoder.embed_positions"
        self.positions = Positions(where, config.max_position_embeddings + OFFSET, config.hidden_size, OFFSET)

    def layer(self, b: Build, index: int) -> PreNorm:
        """The usual order, by other names."""
        norms = self.norm_at(b / "self_attn_layer_norm"), self.norm_at(b / "final_layer_norm")
        return PreNorm(b, norms, Attention(b / "self_attn", self.attention(index)), self.mlp(b))

    def attention(self, index: int) -> AttentionPlan:
        """Without rope."""
        bias = self.config.enable_bias
        return replace(super().attention(index), rope=None, qkv_bias=bias, out_bias=bias, out_name="out_proj")

    def mlp(self, b: Build) -> MLP:
        """Up, ReLU and down."""
        c = self.config
        plan = MLPPlan(c.hidden_size, c.intermediate_size, c.activation_function, ("fc1", "fc2"), c.enable_bias)
        return MLP(b, plan)

    def embed(self, step: StepInputs) -> Tensor:
        """Rows of both tables."""
        return super().embed(step) + self.positions.forward(step.positions)


def build(facts: ModelFacts, build: Build) -> Opt:
    """The model of a checkpoint."""
    return Opt(typed(facts.config, OptConfig, f"{facts.path}/config.json"), facts, build)
