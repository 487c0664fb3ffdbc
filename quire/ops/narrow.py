"""Keys and values of 8 bits: how they are rounded on their way into pages, and what they are worth on the way out.

Two formats of the "OCP 8-bit floating point specification": E4M3 (largest value 448, no infinities) and E5M2 (57,344).
The value that counts is the stored one times a scale of the layer. What is too large is stored as the largest value,
infinities too; NaN stays NaN, so that a spoiled row is still found out. Wider dtypes are rounded as usual, unscaled.
"""

import torch
from torch import Tensor

LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
"""The dtypes of 8 bits and their largest values."""


def narrowed(x: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """`x` as it is kept in pages of `dtype`, to the nearest, ties to even."""
    if dtype not in LARGEST:
        return x.to(dtype)
    # Times the inverse, in float32, is what every kernel computes: the same values round to the same bits.
    return (x.float() * (1.0 / scale)).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


def widened(kept: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """What `kept` is worth, in `dtype`."""
    wide = kept.to(dtype)
    # A scale of 1 is common, and pools are large.
    return wide if kept.dtype not in LARGEST or scale == 1.0 else wide.mul_(scale)


def raw(pool: Tensor) -> Tensor:
    """A pool as something that can be indexed and copied everywhere: bytes, where its dtype has 8 bits."""
    return pool.view(torch.uint8) if pool.dtype in LARGEST else pool
