"""Products with weights by the vendor's libraries, whose sums depend on how many rows are multiplied at once: so it is
always the same number. The last tile is filled up with whatever its memory holds.

On GPUs all rows of a tile go through the same instructions. Libraries for CPUs treat the rows of a tile differently, so
there a tile is one row, in memory of its own.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from quire.ops.linear import LinearSpec, linear
from quire.ops.registry import provide
from quire.ops.stored import StoredSpec, stored_linear

GPU_ROWS = 128
"""Up to so many rows a GPU takes as long as it takes to read the weight."""

ALIGNED = 256
"""Bytes. Libraries look at where rows begin, too."""


def tile_rows(x: Tensor) -> int:
    """Rows of a tile on the device of `x`."""
    return 1 if x.device.type == "cpu" else GPU_ROWS


def tiled(x: Tensor, multiply: Callable[[Tensor], Tensor], rows: int, outputs: int) -> Tensor:
    """`multiply` of the rows of `x`, (n, inputs), in tiles of `rows` rows: (n, outputs)."""
    if len(x) == rows:
        return multiply(whole(x, rows))
    if len(x) < rows:
        # Some rows of a tile would keep all of it.
        return multiply(whole(x, rows))[: len(x)].clone()
    out = x.new_empty(len(x), outputs)
    for some, share in zip(x.split(rows), out.split(rows), strict=True):
        share.copy_(multiply(whole(some, rows))[: len(some)])
    return out


def whole(some: Tensor, rows: int) -> Tensor:
    """A tile that begins with `some`, at most `rows` rows. Those behind them are anything: no row knows of another."""
    if rows > 1 and len(some) == rows and some.is_contiguous() and some.data_ptr() % ALIGNED == 0:
        return some
    tile = some.new_empty(rows, some.shape[1])
    tile[: len(some)] = some
    return tile


@provide("batch_invariant", linear, batch_invariant=True)
def invariant_linear(x: Tensor, weight: Tensor, bias: Tensor | None, spec: LinearSpec) -> Tensor:
    """See `linear`."""
    return tiled(x, lambda tile: F.linear(tile, weight, bias), tile_rows(x), spec.outputs)


@provide("batch_invariant", stored_linear, batch_invariant=True)
def invariant_stored_linear(x: Tensor, weight: Tensor, bias: Tensor | None, spec: StoredSpec) -> Tensor:
    """See `stored_linear`. The weight becomes values again for each tile."""
    return tiled(x, lambda tile: stored_linear(tile, weight, bias, spec), tile_rows(x), spec.storage.outputs)
