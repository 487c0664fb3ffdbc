"""What a GPU reaches at all: reading memory, and multiplying matrices, on random data.

Measured in the run whose figures are held against it. Needs torch; reads with a Triton kernel where there is one.
"""

import itertools
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from .bounds import Ceilings

READ_BYTES = 4 << 30
SIDE = 8192


def measure(device: torch.device) -> Ceilings:
    """The ceilings of `device`; takes about a second and 4.5 GiB."""
    data = torch.randn(READ_BYTES // 4, device=device)
    read = max(READ_BYTES / seconds(reader, data) for reader in _readers())
    del data
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    matrix = 2 * SIDE**3 / seconds(torch.mm, a, b)
    torch.cuda.empty_cache()
    return Ceilings(read, matrix)


def seconds(function: Callable[..., object], *args: object, runs: int = 10) -> float:
    """Median device seconds of one call."""
    for _ in range(3):
        function(*args)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    marks[0].record()
    for mark in marks[1:]:
        function(*args)
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks)) / 1e3


def _readers() -> list[Callable[[Tensor], object]]:
    readers: list[Callable[[Tensor], object]] = [torch.sum]
    try:
        from .read_kernel import read_all
    except ImportError:
        return readers
    return [*readers, read_all]
