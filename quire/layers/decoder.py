"""The decoder that every family shares: embedding, layers, norm, head.

A model file says what one layer is; the orders of its parts are in `layers/blocks.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.rope import RopeFacts, rope_facts
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import Block, FeedForward, PreNorm
from quire.layers.build import Build
from quire.layers.embedding import Embedding, Head, vocabulary_part
from quire.layers.kinds import fewest, kind_of
from quire.layers.mlp import GatedMLP
from quire.layers.norm import Norm, RMSNorm
from quire.layers.norm_linear import Stream
from quire.layers.scores import decoder_scores
from quire.ops.registry import Choice
from quire.ops.step import StepInputs

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
"""A size in config.json; beyond the bound it is a damaged number, not a model."""
Depth = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Epsilon = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Cap = Annotated[float, msgspec.Meta(gt=0)]


class DecoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of config.json that every family of decoders has."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Depth
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    rms_norm_eps: Epsilon = 1e-6
    tie_word_embeddings: bool = False

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; as many as of queries unless the config says otherwise."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Values per head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def embedding_size(self) -> int:
        """Values of a row of the embedding, and of what the head takes."""
        return self.hidden_size


@dataclass(frozen=True, slots=True)
class Names:
    """What a checkpoint calls the modules of a decoder.

    Attributes:
        root: above everything but the head.
    """

    root: str = "model"
    embedding: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    head: str = "lm_head"


class Decoder(nn.Module):
    """Embedding, layers, norm, head. As it stands it is Llama without biases.

    A family derives from it and overrides what it does differently: `attention` (a value), `mlp`, the whole `layer`, or
    one of the ends `embed` and `logits`.
    """

    names: ClassVar[Names] = Names()
    norm_offset: float = 0.0
    """Added to the weights of all norms when they are applied."""
    head_bias: ClassVar[bool] = False

    def __init__(self, config: DecoderConfig, facts: ModelFacts, b: Build) -> None:
        super().__init__()
        self.mesh, self.config = b.mesh, config
        self.rope: RopeFacts = rope_facts(facts.config)
        names = self.names
        m, head = b / names.root, b / names.head
        part = vocabulary_part(head, config.vocab_size, config.embedding_size)
        shared = config.tie_word_embeddings and not head.quantizes(part)
        tied = head.name("weight") if shared and facts.pooling is None else None
        self.embedding = Embedding(m / names.embedding, config.vocab_size, config.embedding_size, tied)
        # What a pass goes through.
        self._layers: list[Block] = []
        self._choices: list[list[Choice]] = []
        for i in range(config.num_hidden_layers):
            before = len(b.choices)
            self._layers.append(self.layer(m / f"{names.layers}.{i}", i))
            self._choices.append(b.choices[before:])
        self.layers = nn.ModuleList(self._layers)
        self.norm = self.last_norm(m / names.norm)
        words = m / names.embedding if config.tie_word_embeddings else head
        self.scorer = decoder_scores(facts, b, words.name("weight"))
        if facts.pooling is None:
            table = self.embedding.weight if tied else head.matrix(part, head=True)
            self.head = Head(head, config.vocab_size, table, self.head_bias)

    def layer(self, b: Build, index: int) -> Block:
        """Make layer `index`, whose weights lie at `b`."""
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        return PreNorm(b, norms, Attention(b / "self_attn", self.attention(index)), self.mlp(b / "mlp"))

    def attention(self, index: int) -> AttentionPlan:
        """What the attention of layer `index` is like."""
        c = self.config
        return AttentionPlan(
            hidden=c.hidden_size, heads=c.num_attention_heads, kv_heads=c.kv_heads, head_dim=c.head_size, rope=self.rope
        )

    def mlp(self, b: Build) -> FeedForward:
        """Make a layer's feed-forward part."""
        return GatedMLP(b, self.config.hidden_size, self.config.intermediate_size)

    def norm_at(self, b: Build) -> Norm:
        """A norm over the hidden size."""
        return RMSNorm(b, self.config.hidden_size, self.config.rms_norm_eps, self.norm_offset)

    def last_norm(self, b: Build) -> Norm | None:
        """Of what the last layer leaves; None where layers norm it themselves."""
        return self.norm_at(b)

    def embed(self, step: StepInputs) -> Tensor:
        """The step's tokens as (tokens, hidden)."""
        return self.embedding.forward(step.token_ids)

    def forward(self, step: StepInputs) -> Tensor:
        """Hidden states of all tokens of the step, or of the last ones where it says so, normed: (n, hidden)."""
        stream = Stream(self.embed(step))
        for layer in self._layers[:-1]:
            stream = layer.forward(stream, step)
        last = self._layers[-1]
        stream = last.last(stream, step) if step.ends else last.forward(stream, step)
        return stream.total(self.mesh) if self.norm is None else stream.join(self.norm, self.mesh)[0]

    @contextmanager
    def abridged(self) -> Iterator[None]:
        """See `Model`."""
        before, self._layers = self._layers, self._few
        try:
            yield
        finally:
            self._layers = before

    @cached_property
    def _few(self) -> list[Block]:
        """Layers that take every kernel. First asked for where all are gone through."""
        kept = fewest([kind_of(*made) for made in zip(self._layers, self._choices, strict=True)])
        return [self._layers[i] for i in kept]

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab) over the whole vocabulary, in the model's dtype, on every rank."""
        return self.head.forward(hidden)

    def scores(self, hidden: Tensor) -> Tensor:
        """(n, hidden), pooled or of single tokens, to the raw scores of the labels, (n, labels)."""
        assert self.scorer is not None, "the checkpoint has a head where scores are asked for"
        return self.scorer.forward(hidden)


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits bounded by `cap` through tanh; unchanged without one."""
    return logits if cap is None else torch.tanh(logits / cap) * cap
