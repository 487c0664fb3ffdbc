"""The ranks that share a model, as one value passed down, and the collectives between them.

A mesh of size 1 is free: it touches no torch.distributed, which some builds of torch lack. Layers ask the mesh for
sizes and sums and know nothing else about ranks.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quire.base.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Mesh:
    """`size` ranks over which every layer is cut; this process is number `rank`.

    `group` is a torch.distributed process group (None: the default one). A mesh without a live group still answers
    questions about sizes, which is all that loading needs.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    def split(self, n: int, what: str = "size") -> int:
        """This rank's share of `n`. Raises ConfigError where `n` does not divide over the ranks."""
        if n % self.size:
            raise ConfigError(f"tensor_parallel_size={self.size} does not divide {what}={n}; choose a divisor of {n}")
        return n // self.size

    def copies(self, heads: int) -> int:
        """How many neighbouring ranks hold the same KV head: 1 as long as there is a head for every rank."""
        if self.size <= heads:
            self.split(heads, "num_key_value_heads")
            return 1
        if self.size % heads:
            raise ConfigError(
                f"tensor_parallel_size={self.size} is no multiple of num_key_value_heads={heads}; choose one that is"
            )
        return self.size // heads

    def padded(self, vocab: int) -> int:
        """`vocab` rounded up so that it divides over the ranks; the added rows are zeros that nobody reads."""
        return -(-vocab // self.size) * self.size

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over the ranks, in place where there is more than one."""
        if self.size > 1:
            torch.distributed.all_reduce(x, group=self.group)
        return x

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """The ranks' `x` joined along `dim`, in order of rank."""
        if self.size == 1:
            return x
        pieces = [torch.empty_like(x) for _ in range(self.size)]
        torch.distributed.all_gather(pieces, x.contiguous(), group=self.group)
        return torch.cat(pieces, dim=dim)

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        """Rank `source`'s `x`, written into everyone's."""
        if self.size > 1:
            torch.distributed.broadcast(x, group=self.group, group_src=source)
        return x
