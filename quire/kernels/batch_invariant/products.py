"""Products with weights by the vendor's libraries, whose sums depend on how many rows are multiplied at once: so it is
always the same number, the last tile filled up with zeros.

On GPUs all rows of a tile go through the same instructions. Libraries for CPUs treat the rows of a tile differently, so
there a tile is one row, in memory of its own.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.linear import LinearSpec, linear
from quire.ops.registry import provide
from quire.ops.stored import StoredSpec, stored_linear

GPU_ROWS = 128
"""Up to so many rows a GPU takes as long as it takes to read the weight."""


def tiled(x: Tensor, multiply: Callable[[Tensor], Tensor], outputs: int) -> Tensor:
    """`multiply` of the rows of `x`, (n, inputs), in tiles of one size: (n, outputs)."""
    rows = 1 if x.device.type == "cpu" else GPU_ROWS
    out = torch.empty(len(x), outputs, dtype=x.dtype, device=x.device)
    for first in range(0, len(x), rows):
        tile = x.new_zeros(rows, x.shape[1])
        some = x[first : first + rows]
        tile[: len(some)] = some
        out[first : first + rows] = multiply(tile)[: len(some)]
    return out


@provide("batch_invariant", linear, batch_invariant=True)
def invariant_linear(x: Tensor, weight: Tensor, bias: Tensor | None, spec: LinearSpec) -> Tensor:
    """See `linear`."""
    return tiled(x, lambda tile: F.linear(tile, weight, bias), spec.outputs)


@provide("batch_invariant", stored_linear, batch_invariant=True)
def invariant_stored_linear(x: Tensor, weight: Tensor, bias: Tensor | None, spec: StoredSpec) -> Tensor:
    """See `stored_linear`. The weight becomes values again for each tile."""
    return tiled(x, lambda tile: stored_linear(tile, weight, bias, spec), spec.storage.outputs)
