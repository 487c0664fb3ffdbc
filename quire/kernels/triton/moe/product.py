"""Sizes of tiles: what the products of this folder share."""

from dataclasses import dataclass, replace

from torch import Tensor

from quire.kernels.triton.launch import device_of, next_power_of_2

BARRIERS = 1024
"""Bytes of shared memory that the copy engine's barriers may take."""


@dataclass(frozen=True, slots=True)
class Product:
    """Shape of a product's tiles: rows and depth of weights, warps, stages."""

    block_n: int
    block_k: int
    warps: int
    stages: int = 3

    def within(self, rows: int, depth: int) -> "Product":
        """No larger than the weights are, and no smaller than a matrix instruction."""
        n, k = min(self.block_n, max(16, next_power_of_2(rows))), min(self.block_k, max(16, next_power_of_2(depth)))
        return replace(self, block_n=n, block_k=k)

    def fitting(self, tile: int, matrices: int, x: Tensor) -> "Product":
        """With so few stages, and so little depth, that tiles of entries and `matrices` of weights fit where `x` is."""
        row_bytes = (tile + matrices * self.block_n) * x.element_size()
        limit, fitting = device_of(x.device).shared_bytes - BARRIERS, self
        while fitting.stages * fitting.block_k * row_bytes > limit and fitting.block_k > 16:
            if fitting.stages > 2:
                fitting = replace(fitting, stages=fitting.stages - 1)
            else:
                fitting = replace(fitting, block_k=fitting.block_k // 2)
        return fitting
