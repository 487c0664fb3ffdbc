"""GPT-2: learned positions, layer norms, biases everywhere, and matrices that checkpoints hold transposed."""

from dataclasses import replace
from typing import Literal

import msgspec
from torch import Tensor

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import PreNorm
from quire.layers.build import Build
from quire.layers.classic import ClassicConfig, ClassicDecoder
from quire.layers.decoder import Count, Depth, Epsilon, Names
from quire.layers.embedding import Positions
from quire.layers.mlp import MLP, ActivationName, MLPPlan
from quire.ops.step import StepInputs


class Gpt2Config(ClassicConfig, frozen=True, kw_only=True):
    """Fields of config.json, by GPT-2's names."""

    hidden_size: Count = msgspec.field(name="n_embd", default=768)
    num_hidden_layers: Depth = msgspec.field(name="n_layer", default=12)
    num_attention_heads: Count = msgspec.field(name="n_head", default=12)
    n_positions: Count = 1024
    intermediate_size: Count | None = msgspec.field(name="n_inner", default=None)  # type: ignore[assignment]
    layer_norm_eps: Epsilon = msgspec.field(name="layer_norm_epsilon", default=1e-5)
    activation_function: ActivationName = "gelu_new"
    tie_word_embeddings: bool = True
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    add_cross_attention: Literal[False] = False


class Gpt2(ClassicDecoder):
    """Positions are added to the embeddings."""

    config: Gpt2Config
    names = Names("transformer", "wte", "h", "ln_f")

    def __init__(self, config: Gpt2Config, facts: ModelFacts, b: Build) -> None:
        super().__init__(config, facts, b)
        self.positions = Positions(b / "transformer.wpe", config.n_positions, config.hidden_size)

    def layer(self, b: Build, index: int) -> PreNorm:
        """The usual order, by other names."""
        attention = Attention(b / "attn", self.attention(index))
        return PreNorm(b, (self.norm_at(b / "ln_1"), self.norm_at(b / "ln_2")), attention, self.mlp(b / "mlp"))

    def attention(self, index: int) -> AttentionPlan:
        """One transposed matrix for queries, keys and values; no rope."""
        return replace(
            super().attention(index),
            rope=None,
            qkv_bias=True,
            out_bias=True,
            names=("c_attn", "c_attn", "c_attn"),
            out_name="c_proj",
            transposed=True,
        )

    def mlp(self, b: Build) -> MLP:
        """Up, GELU and down."""
        c = self.config
        plan = MLPPlan(c.hidden_size, c.inner_size, c.activation_function, ("c_fc", "c_proj"), transposed=True)
        return MLP(b, plan)

    def embed(self, step: StepInputs) -> Tensor:
        """Rows of both tables."""
        return super().embed(step) + self.positions.forward(step.positions)


def build(facts: ModelFacts, build: Build) -> Gpt2:
    """The model of a checkpoint."""
    return Gpt2(typed(facts.config, Gpt2Config, f"{facts.path}/config.json"), facts, build)
