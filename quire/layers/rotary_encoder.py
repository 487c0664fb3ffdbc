"""Encoders of BERT's kind that rotate heads instead of learning positions, and gate their feed-forward layers.

A model file says what tensors are called and which products have biases.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from quire.checkpoint.entries import BASES
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.checkpoint.rope import rope_facts
from quire.layers.build import Build
from quire.layers.decoder import Epsilon
from quire.layers.embedding import Embedding
from quire.layers.encoder import Encoder, EncoderConfig, GatedParts, GatedUnit, PostNorm, Rows, TextEmbeddings, kinds_at
from quire.layers.norm import LayerNorm
from quire.layers.ragged import RaggedAttention, RaggedPlan
from quire.layers.scores import ScoreHead, score_linear, whole_linear


class RotaryConfig(EncoderConfig, frozen=True, kw_only=True):
    """The fields of config.json that these families add."""

    type_vocab_size: Rows = 0
    hidden_act: Literal["gelu", "silu"]
    layer_norm_eps: Epsilon = 1e-12
    # What the code that came with checkpoints could be asked for beside this.
    activation_function: Literal["swiglu"] = "swiglu"
    position_embedding_type: Literal["rope"] = "rope"
    layer_norm_type: Literal["layer_norm"] = "layer_norm"
    logn_attention_scale: Literal[False] = False
    prenorm: Literal[False] = False
    parallel_block: Literal[False] = False
    use_rms_norm: Literal[False] = False
    rotary_emb_interleaved: Literal[False] = False
    rotary_scaling_factor: None = None


@dataclass(frozen=True, slots=True)
class RotaryNames:
    """What modules are called, and which of their products have biases.

    Attributes:
        norm: behind the embeddings.
        layers: the list of layers.
        attention: of queries, keys and values as one, and of the product behind.
        mlp: gate, up and down; `up_first` says that a fused one holds up before gate.
        norms: behind attention and the feed-forward layer.
        biases: of attention, of down.
    """

    norm: str
    layers: str
    attention: tuple[str, str]
    mlp: tuple[str, str, str]
    norms: tuple[str, str]
    biases: tuple[bool, bool]
    up_first: bool = False


def rotary_encoder(facts: ModelFacts, b: Build, names: RotaryNames) -> Encoder:
    """The encoder of a checkpoint, with BERT's heads."""
    c = typed(facts.config, RotaryConfig, f"{facts.path}/config.json")
    at = b / BASES[facts.model_type]
    e = at / "embeddings"
    embeddings = TextEmbeddings(
        Embedding(e / "word_embeddings", c.vocab_size, c.hidden_size),
        None,
        kinds_at(e / "token_type_embeddings", c.type_vocab_size, c.hidden_size),
        _norm(at / names.norm, c),
    )
    layers = [_layer(at / f"{names.layers}.{i}", c, facts, names) for i in range(c.num_hidden_layers)]
    return Encoder(embeddings, layers, _head(facts, b, c.hidden_size))


def _layer(b: Build, c: RotaryConfig, facts: ModelFacts, names: RotaryNames) -> PostNorm:
    qkv, out = names.attention
    attention = RaggedPlan(
        hidden=c.hidden_size,
        heads=c.num_attention_heads,
        rope=rope_facts(facts.config),
        qkv_bias=names.biases[0],
        out_bias=names.biases[0],
        names=(qkv, qkv, qkv),
        out=out,
    )
    parts = GatedParts(names.mlp, (False, names.biases[1]), names.up_first)
    mlp = GatedUnit(b, c.hidden_size, c.intermediate_size, c.hidden_act, parts)
    norms = _norm(b / names.norms[0], c), _norm(b / names.norms[1], c)
    return PostNorm(b, RaggedAttention(b, attention), mlp, norms)


def _norm(b: Build, c: RotaryConfig) -> LayerNorm:
    return LayerNorm(b, c.hidden_size, c.layer_norm_eps)


def _head(facts: ModelFacts, b: Build, size: int) -> ScoreHead | None:
    if facts.pooling is None or facts.pooling.head == "none":
        return None
    scores = score_linear(b / "classifier", facts)
    if facts.pooling.head == "token":
        return ScoreHead(scores)
    return ScoreHead(scores, whole_linear(b / BASES[facts.model_type] / "pooler.dense", size, size), torch.tanh)
