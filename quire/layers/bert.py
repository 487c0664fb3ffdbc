"""BERT's way to lay out an encoder, which RoBERTa's families share: learned positions, norms behind the blocks.

A model file says what head it has.
"""

from typing import Annotated, Literal

import msgspec

from quire.checkpoint.entries import BASES
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.pooling import position_offset
from quire.checkpoint.read import typed
from quire.layers.build import Build
from quire.layers.decoder import Count, Epsilon
from quire.layers.embedding import Embedding, Positions
from quire.layers.encoder import Encoder, EncoderConfig, PostNorm, Rows, TextEmbeddings, kinds_at
from quire.layers.mlp import MLP, ActivationName, MLPPlan
from quire.layers.norm import LayerNorm
from quire.layers.ragged import RaggedAttention, RaggedPlan
from quire.layers.scores import ScoreHead


class BertConfig(EncoderConfig, frozen=True, kw_only=True):
    """The fields of config.json that these families add."""

    max_position_embeddings: Count
    type_vocab_size: Rows = 2
    hidden_act: ActivationName = "gelu"
    layer_norm_eps: Epsilon = 1e-12
    pad_token_id: Annotated[int, msgspec.Meta(ge=0)] | None = None
    position_embedding_type: Literal["absolute"] = "absolute"


def bert_config(facts: ModelFacts) -> BertConfig:
    """The config of a checkpoint, typed."""
    return typed(facts.config, BertConfig, f"{facts.path}/config.json")


def bert_encoder(facts: ModelFacts, b: Build, head: ScoreHead | None) -> Encoder:
    """The encoder of a checkpoint, with the head that its family has."""
    c, at = bert_config(facts), b / BASES[facts.model_type]
    e = at / "embeddings"
    embeddings = TextEmbeddings(
        Embedding(e / "word_embeddings", c.vocab_size, c.hidden_size),
        Positions(e / "position_embeddings", c.max_position_embeddings, c.hidden_size, position_offset(facts.config)),
        kinds_at(e / "token_type_embeddings", c.type_vocab_size, c.hidden_size),
        _norm(e / "LayerNorm", c),
    )
    layers = [_layer(at / f"encoder.layer.{i}", c) for i in range(c.num_hidden_layers)]
    return Encoder(embeddings, layers, head)


def _layer(b: Build, c: BertConfig) -> PostNorm:
    attention = RaggedPlan(
        hidden=c.hidden_size,
        heads=c.num_attention_heads,
        names=("self.query", "self.key", "self.value"),
        out="output.dense",
    )
    names = ("intermediate.dense", "output.dense")
    norms = _norm(b / "attention.output.LayerNorm", c), _norm(b / "output.LayerNorm", c)
    mlp = MLP(b, MLPPlan(c.hidden_size, c.intermediate_size, c.hidden_act, names))
    return PostNorm(b, RaggedAttention(b / "attention", attention), mlp, norms)


def _norm(b: Build, c: BertConfig) -> LayerNorm:
    return LayerNorm(b, c.hidden_size, c.layer_norm_eps)
