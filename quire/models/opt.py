"""OPT: learned positions, layer norms, biases everywhere, ReLU; OPT-350m norms sums and has narrow embeddings."""

from dataclasses import replace
from typing import Literal

import msgspec
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import NormedSum, PreNorm
from quire.layers.build import Build
from quire.layers.classic import ClassicConfig, ClassicDecoder
from quire.layers.decoder import Count, Names
from quire.layers.embedding import Positions
from quire.layers.mlp import MLP, ActivationName, MLPPlan
from quire.layers.norm import Norm
from quire.layers.scores import whole_linear
from quire.ops.step import StepInputs

OFFSET = 2
"""Rows of the table of positions that nobody reads."""


class OptConfig(ClassicConfig, frozen=True, kw_only=True):
    """Fields of config.json, by OPT's names."""

    intermediate_size: Count = msgspec.field(name="ffn_dim", default=3072)
    max_position_embeddings: Count = 2048
    activation_function: ActivationName = "relu"
    tie_word_embeddings: bool = True
    enable_bias: bool = True
    layer_norm_elementwise_affine: Literal[True] = True
    do_layer_norm_before: bool = True
    word_embed_proj_dim: Count | None = None

    @property
    def embedding_size(self) -> int:
        """As the config says; products lead to the hidden size and back where it differs."""
        return self.word_embed_proj_dim or self.hidden_size


class Opt(ClassicDecoder):
    """Positions are added to the embeddings."""

    config: OptConfig
    names = Names("model.decoder", norm="final_layer_norm")

    def __init__(self, config: OptConfig, facts: ModelFacts, b: Build) -> None:
        size, narrow = config.hidden_size, config.embedding_size
        if narrow != size and facts.pooling is not None:
            raise CheckpointError(f"config.json: word_embed_proj_dim={narrow} is served for text only, not for pooling")
        super().__init__(config, facts, b)
        where = b / "model.decoder.embed_positions"
        self.positions = Positions(where, config.max_position_embeddings + OFFSET, size, OFFSET)
        self.project_in = self.project_out = None
        if narrow != size:
            self.project_in = whole_linear(b / "model.decoder.project_in", narrow, size, bias=False)
            self.project_out = whole_linear(b / "model.decoder.project_out", size, narrow, bias=False)

    def layer(self, b: Build, index: int) -> PreNorm | NormedSum:
        """Norms before the blocks, or of sums."""
        norms = self.norm_at(b / "self_attn_layer_norm"), self.norm_at(b / "final_layer_norm")
        kind = PreNorm if self.config.do_layer_norm_before else NormedSum
        return kind(b, norms, Attention(b / "self_attn", self.attention(index)), self.mlp(b))

    def last_norm(self, b: Build) -> Norm | None:
        """None where sums are normed."""
        return super().last_norm(b) if self.config.do_layer_norm_before else None

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
        words = super().embed(step)
        if self.project_in is not None:
            words = self.project_in.forward(words)
        return words + self.positions.forward(step.positions)

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab)."""
        return super().logits(hidden if self.project_out is None else self.project_out.forward(hidden))


def build(facts: ModelFacts, build: Build) -> Opt:
    """The model of a checkpoint."""
    return Opt(typed(facts.config, OptConfig, f"{facts.path}/config.json"), facts, build)
