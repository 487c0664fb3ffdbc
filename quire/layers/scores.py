"""Heads that score labels, for a text as a whole or for each of its tokens. Whole on every rank and never quantized."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.sentences import Projection
from quire.layers.build import Build
from quire.layers.linear import Linear
from quire.layers.norm import LayerNorm
from quire.loading.recipe import Part


class ScoreHead(nn.Module):
    """What a checkpoint has behind its layers: perhaps a layer of its own, then scores of labels. Whole on every rank.

    Args:
        dense: of the layer before the scores, None without one.
        activation: between the two.
        norm: behind the activation.
        scores: of the labels.
    """

    def __init__(
        self,
        scores: Linear,
        dense: Linear | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        norm: LayerNorm | None = None,
    ) -> None:
        super().__init__()
        self.scores, self.dense, self.norm = scores, dense, norm
        self._activate = activation

    def forward(self, pooled: Tensor) -> Tensor:
        """(n, hidden) to (n, labels)."""
        if self.dense is not None:
            pooled = self.dense.forward(pooled)
        if self._activate is not None:
            pooled = self._activate(pooled)
        return self.scores.forward(pooled if self.norm is None else self.norm.forward(pooled))


def whole_linear(b: Build, inputs: int, outputs: int, bias: bool = True) -> Linear:
    """A small product that every rank computes as a whole and that is never quantized."""
    weight = b.weight(Part("weight", (outputs, inputs)))
    return Linear(b, weight, b.weight(Part("bias", (outputs,))) if bias else None)


class Projections(nn.Module):
    """Products that vectors go through behind a model, each perhaps through tanh."""

    def __init__(self, b: Build, projections: Sequence[Projection]) -> None:
        super().__init__()
        self._tanh = [one.tanh for one in projections]
        self.layers = nn.ModuleList(
            whole_linear(b / one.name, one.inputs, one.outputs, one.bias) for one in projections
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """(n, inputs of the first) to (n, outputs of the last)."""
        for layer, tanh in zip(self.layers, self._tanh, strict=True):
            vectors = layer(vectors)
            vectors = vectors.tanh() if tanh else vectors
        return vectors


def score_linear(b: Build, facts: ModelFacts, bias: bool = True) -> Linear:
    """The product that makes scores of the labels that the checkpoint names."""
    assert facts.pooling is not None, "only what is pooled has scores"
    return whole_linear(b, facts.config["hidden_size"], len(facts.pooling.labels), bias)


class TokenScores(nn.Module):
    """Scores that are logits of a few tokens; of two, that of the second less that of the first.

    Args:
        table: name of the matrix that makes logits, within `b`.
        shape: of that matrix.
    """

    def __init__(self, b: Build, tokens: Sequence[int], table: str, shape: tuple[int, int]) -> None:
        super().__init__()
        weight = b.weight(*(Part(table, shape, first=token, rows=1) for token in tokens))
        self.logits = Linear(b, weight)

    def forward(self, pooled: Tensor) -> Tensor:
        """(n, hidden) to (n, labels)."""
        logits = self.logits.forward(pooled)
        return logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits


def decoder_scores(facts: ModelFacts, b: Build, table: str) -> ScoreHead | TokenScores | None:
    """The head of a decoder that scores: `score`, with biases where it scores tokens, behind a layer in reward models.

    None for any other decoder. `table` is the name of the matrix that makes logits.
    """
    if facts.pooling is None or facts.pooling.head == "none":
        return None
    if facts.pooling.tokens:
        return TokenScores(b, facts.pooling.tokens, table, (facts.vocab_size, facts.config["hidden_size"]))
    if facts.pooling.head == "reward":
        size = facts.config["hidden_size"]
        return ScoreHead(score_linear(b / "score.2", facts), whole_linear(b / "score.0", size, size), torch.relu)
    return ScoreHead(score_linear(b / "score", facts, facts.pooling.head == "token"))
