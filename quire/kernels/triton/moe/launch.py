"""What the launches of this folder share: where dependent launches are, sizes of tiles."""

from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Product:
    """Shape of a product's tiles: rows and depth of weights, warps, stages."""

    block_n: int
    block_k: int
    warps: int
    stages: int = 3

    def within(self, rows: int, depth: int) -> "Product":
        """No larger than the weights are, and no smaller than a matrix instruction."""
        n, k = min(self.block_n, max(16, pow2(rows))), min(self.block_k, max(16, pow2(depth)))
        return replace(self, block_n=n, block_k=k)

    def fitting(self, tile: int, matrices: int, x: Tensor) -> "Product":
        """With so few stages, and so little depth, that tiles of entries and `matrices` of weights fit where `x` is."""
        row_bytes = (tile + matrices * self.block_n) * x.element_size()
        limit, fitting = shared_bytes(x.device), self
        while fitting.stages * fitting.block_k * row_bytes > limit and fitting.block_k > 16:
            if fitting.stages > 2:
                fitting = replace(fitting, stages=fitting.stages - 1)
            else:
                fitting = replace(fitting, block_k=fitting.block_k // 2)
        return fitting


@cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that a block may have, less a little for barriers."""
    if device.type == "cpu":
        return 1 << 30
    driver = triton.runtime.driver.active
    properties = driver.utils.get_device_properties(driver.get_current_device())
    return int(properties["max_shared_mem"]) - 1024


@cache
def hopper(device: torch.device) -> bool:
    """Whether dependent launches and the bulk copy engine are there."""
    cuda = device.type == "cuda" and torch.version.hip is None
    return cuda and torch.cuda.get_device_capability(device) >= (9, 0)


def dependent(pdl: bool) -> dict[str, bool]:
    """The launch option of kernels that wait for their predecessor by themselves; others must not have it."""
    return {"launch_pdl": True} if pdl else {}


def pow2(n: int) -> int:
    """The power of two that is not less than `n`."""
    return max(1, int(triton.next_power_of_2(n)))
