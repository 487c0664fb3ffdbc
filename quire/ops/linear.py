"""Matrix products with weights, and rows of an embedding table."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """A product with a weight of `outputs` rows and `inputs` columns (this rank's share)."""

    inputs: int
    outputs: int
    bias: bool = False
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """Rows `first` to `first + rows` of an embedding table of `vocab` rows."""

    vocab: int
    rows: int
    first: int
    size: int
    dtype: str = "float32"
    device: str = "cpu"


def _linear_samples() -> Iterator[tuple[LinearSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for rows, inputs, outputs, bias in ((1, 16, 24, False), (5, 32, 8, True), (0, 8, 8, False)):
            spec = LinearSpec(inputs, outputs, bias, dtype)
            weight = normal(dtype, outputs, inputs, seed=1)
            tensors = {"x": normal(dtype, rows, inputs), "weight": weight}
            yield spec, {**tensors, "bias": normal(dtype, outputs, seed=2) if bias else None, "spec": spec}


def _embedding_samples() -> Iterator[tuple[EmbeddingSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for rows, first in ((20, 0), (10, 0), (10, 10)):
            spec = EmbeddingSpec(20, rows, first, 6, dtype)
            yield spec, {"ids": torch.tensor([0, 9, 10, 19, 3]), "weight": normal(dtype, rows, 6), "spec": spec}


@op(samples=_linear_samples)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, spec: LinearSpec) -> Tensor:
    """x @ weight.T + bias.

    Args:
        x: (tokens, inputs).
        weight: (outputs, inputs), of the dtype of `x`.
        bias: (outputs,) or None.

    Returns: (tokens, outputs) in the dtype of `x`.
    """
    return F.linear(x, weight, bias)


@op(samples=_embedding_samples, batch_invariant=True)
def embedding(ids: Tensor, weight: Tensor, spec: EmbeddingSpec) -> Tensor:
    """The rows of `weight` that `ids` name; zeros for ids whose row another rank holds.

    Args:
        ids: (tokens,) int64, below `vocab`.
        weight: (rows, size), rows `first` to `first + rows` of the table.

    Returns: (tokens, size).
    """
    if spec.rows >= spec.vocab:
        return F.embedding(ids, weight)
    local = ids - spec.first
    elsewhere = (local < 0) | (local >= spec.rows)
    found = F.embedding(local.masked_fill(elsewhere, 0), weight)
    return found.masked_fill(elsewhere[:, None], 0)
