"""The encoder that BERT's families share: embeddings, layers, and the heads that score what was read.

It reads whole texts and keeps nothing between steps. A model file says where weights lie and what one layer is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

import msgspec
import torch
from torch import Tensor, nn

from quire.layers.build import Build
from quire.layers.decoder import Count, Depth
from quire.layers.embedding import Embedding, Positions
from quire.layers.linear import Matrix, column, row
from quire.layers.mlp import MLP
from quire.layers.norm import LayerNorm
from quire.layers.ragged import RaggedAttention
from quire.layers.scores import ScoreHead
from quire.ops.activation import ActivationSpec, Pointwise, pointwise
from quire.ops.step import StepInputs

Rows = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
"""Entries of a table that some checkpoints lack."""


class EncoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of config.json that every family of encoders has."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Depth
    num_attention_heads: Count


class Layer(Protocol):
    """One layer of an encoder."""

    def forward(self, x: Tensor, step: StepInputs) -> Tensor:
        """(tokens, hidden) to the same."""
        ...


class TextEmbeddings(nn.Module):
    """Words, positions where they are learned, and which of two texts a token belongs to; added and normed."""

    def __init__(self, words: Embedding, positions: Positions | None, kinds: Positions | None, norm: LayerNorm) -> None:
        super().__init__()
        self.words, self.positions, self.kinds, self.norm = words, positions, kinds, norm

    def forward(self, step: StepInputs) -> Tensor:
        """(tokens, hidden)."""
        total = self.words.forward(step.token_ids)
        if self.positions is not None:
            total = total + self.positions.forward(step.positions)
        if self.kinds is not None:
            kinds = torch.zeros_like(step.positions) if step.kinds is None else step.kinds
            total = total + self.kinds.forward(kinds)
        return self.norm.forward(total)


def kinds_at(b: Build, kinds: int, size: int) -> Positions | None:
    """The table of kinds of text, if there is one."""
    return Positions(replace(b, max_model_len=None), kinds, size) if kinds else None


@dataclass(frozen=True, slots=True)
class GatedParts:
    """What the modules of a gated feed-forward layer are called and which have biases.

    Attributes:
        names: gate, up and down; the first two the same for one fused module.
        biases: of gate and up, of down.
        up_first: whether a fused module holds up before gate.
    """

    names: tuple[str, str, str]
    biases: tuple[bool, bool]
    up_first: bool = False


class GatedUnit(nn.Module):
    """down(activation(gate(x)) * up(x)) with an activation of any kind, cut over the inner size."""

    def __init__(self, b: Build, hidden: int, inner: int, activation: Pointwise, parts: GatedParts) -> None:
        super().__init__()
        gate, up, down = parts.names
        self.gate_up = column(b, hidden, [Matrix(name, inner) for name in (gate, up)], parts.biases[0])
        self.down = row(b / down, inner, hidden, parts.biases[1])
        self._activate = activation_at(b, activation)
        self._up_first = parts.up_first

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to this rank's share of (tokens, hidden), which the mesh must still add up."""
        gate, up = self.gate_up.forward(x).chunk(2, dim=-1)
        if self._up_first:
            gate, up = up, gate
        return self.down.forward(self._activate(gate) * up)


class PostNorm(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(
        self, b: Build, attention: RaggedAttention, mlp: MLP | GatedUnit, norms: tuple[LayerNorm, LayerNorm]
    ) -> None:
        super().__init__()
        self.mesh, self.attention, self.mlp = b.mesh, attention, mlp
        self.after_attention, self.after_mlp = norms

    def forward(self, x: Tensor, step: StepInputs) -> Tensor:
        """(tokens, hidden) after both blocks."""
        x = self.after_attention.add(x, self.mesh.all_reduce(self.attention.forward(x, step)))[0]
        return self.after_mlp.add(x, self.mesh.all_reduce(self.mlp.forward(x)))[0]


def activation_at(b: Build, name: Pointwise) -> Callable[[Tensor], Tensor]:
    """An activation as a function."""
    spec = ActivationSpec(name, b.dtype_name, str(b.device))
    activate = b.op(pointwise, spec)

    def run(x: Tensor) -> Tensor:
        out: Tensor = activate(x, spec)
        return out

    return run


class Encoder(nn.Module):
    """Embeddings, layers, and a head where the checkpoint has one."""

    def __init__(
        self,
        embeddings: TextEmbeddings,
        layers: Sequence[Layer],
        head: ScoreHead | None,
        norm: LayerNorm | None = None,
    ) -> None:
        super().__init__()
        self.embeddings, self.norm, self.head = embeddings, norm, head
        self._layers = list(layers)
        self.layers = nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Module))

    def forward(self, step: StepInputs) -> Tensor:
        """Hidden states of all tokens of the step: (tokens, hidden)."""
        x = self.embeddings.forward(step)
        for layer in self._layers:
            x = layer.forward(x, step)
        return x if self.norm is None else self.norm.forward(x)

    def scores(self, hidden: Tensor) -> Tensor:
        """(n, hidden), pooled or of single tokens, to the raw scores of the labels, (n, labels)."""
        assert self.head is not None, "the checkpoint has a head where scores are asked for"
        return self.head.forward(hidden)
