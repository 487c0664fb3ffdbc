"""Falcon 7B, 40B, 180B and 11B: attention and feed-forward side by side, keys shared by all or many query heads."""

from dataclasses import replace
from typing import Literal

import msgspec

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import Parallel, PreNorm
from quire.layers.build import Build
from quire.layers.classic import ClassicConfig, ClassicDecoder
from quire.layers.decoder import Count, Epsilon, Names
from quire.layers.mlp import MLP, ActivationName, MLPPlan
from quire.layers.norm import LayerNorm


class FalconConfig(ClassicConfig, frozen=True, kw_only=True):
    """Fields of config.json, by Falcon's names. Falcon-RW, whose scores depend on the distance (alibi), is refused."""

    intermediate_size: Count | None = msgspec.field(name="ffn_hidden_size", default=None)  # type: ignore[assignment]
    layer_norm_eps: Epsilon = msgspec.field(name="layer_norm_epsilon", default=1e-5)
    num_kv_heads: Count | None = None
    activation: ActivationName = "gelu"
    tie_word_embeddings: bool = True
    alibi: Literal[False] = False
    new_decoder_architecture: bool = False
    multi_query: bool = True
    parallel_attn: bool = True
    bias: bool = False
    num_ln_in_parallel_attn: Literal[1, 2] | None = None
    # GGUF files hold all queries before all keys.
    woven_heads: bool = True

    @property
    def kv_heads(self) -> int:
        """One for all, as many as the newer architecture says, or one for each query head."""
        if self.new_decoder_architecture:
            return self.num_kv_heads or self.num_attention_heads
        return 1 if self.multi_query else self.num_attention_heads

    @property
    def two_norms(self) -> bool:
        """Whether both parts of a layer have a norm of their own."""
        return self.new_decoder_architecture and self.num_ln_in_parallel_attn != 1


class Falcon(ClassicDecoder):
    """Three ways of naming norms."""

    config: FalconConfig
    names = Names("transformer", "word_embeddings", "h", "ln_f")

    def layer(self, b: Build, index: int) -> Parallel | PreNorm:
        """Side by side, with one norm or two, or one after the other."""
        c = self.config
        attention, mlp = Attention(b / "self_attention", self.attention(index)), self.mlp(b / "mlp")
        if c.two_norms and c.parallel_attn:
            return Parallel(b, (self.norm_at(b / "ln_attn"), self.norm_at(b / "ln_mlp")), attention, mlp)
        first: LayerNorm = self.norm_at(b / "input_layernorm")
        if c.parallel_attn:
            return Parallel(b, (first,), attention, mlp)
        return PreNorm(b, (first, self.norm_at(b / "post_attention_layernorm")), attention, mlp)

    def attention(self, index: int) -> AttentionPlan:
        """One matrix for queries, keys and values, woven by KV heads or not."""
        return replace(
            super().attention(index),
            qkv_bias=self.config.bias,
            out_bias=self.config.bias,
            names=("query_key_value", "query_key_value", "query_key_value"),
            out_name="dense",
            interleaved=self.config.woven_heads,
        )

    def mlp(self, b: Build) -> MLP:
        """Up, GELU and down."""
        c = self.config
        names = ("dense_h_to_4h", "dense_4h_to_h")
        return MLP(b, MLPPlan(c.hidden_size, c.inner_size, c.activation, names, c.bias))


def build(facts: ModelFacts, build: Build) -> Falcon:
    """The model of a checkpoint."""
    return Falcon(typed(facts.config, FalconConfig, f"{facts.path}/config.json"), facts, build)
