"""Rotary position embedding by a table of cosines and sines."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Heads of `head_dim` values, of which the first `rotary_dim` are rotated."""

    head_dim: int
    rotary_dim: int
    dtype: str = "float32"
    device: str = "cpu"


def _samples() -> Iterator[tuple[RopeSpec, dict[str, Any]]]:
    angle = torch.arange(32)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03])
    table = torch.cat([angle.cos(), angle.sin()], dim=-1)
    for dtype in FLOATS:
        for tokens, heads, head_dim in ((1, 1, 8), (5, 3, 8), (4, 2, 12), (0, 2, 8)):
            spec = RopeSpec(head_dim, 8, dtype)
            positions = torch.arange(tokens) * 7 % 32
            yield (
                spec,
                {"x": normal(dtype, tokens, heads, head_dim), "positions": positions, "table": table, "spec": spec},
            )


@op(samples=_samples, batch_invariant=True)
def rope(x: Tensor, positions: Tensor, table: Tensor, spec: RopeSpec) -> Tensor:
    """Rotate pairs of values of each head by its token's position; computed in float32.

    Values i and i + rotary_dim / 2 make a pair (the layout of Hugging Face checkpoints).

    Args:
        x: (tokens, heads, head_dim).
        positions: (tokens,) int64.
        table: (max_positions, rotary_dim) float32, cosines then sines of the position's angles.

    Returns: like `x`. Su et al., "RoFormer", 2021.
    """
    half = spec.rotary_dim // 2
    cos, sin = torch.split(table[positions][:, None], half, dim=-1)  # (tokens, 1, half) each
    a, b, rest = torch.split(x.float(), [half, half, spec.head_dim - spec.rotary_dim], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1).to(x.dtype)
