"""A kernel that reads a tensor and does next to nothing with it. Importing it needs Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

import quire.kernels.triton  # noqa: F401  (it lets Triton launch where there is no C compiler)

BLOCK, ROUNDS = 4096, 8


@triton.jit
def _read(data, out, block: tl.constexpr, rounds: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * block * rounds
    total = tl.zeros((block,), tl.float32)
    for i in tl.static_range(rounds):
        total += tl.load(data + first + i * block + tl.arange(0, block))
    tl.store(out + tl.program_id(0), tl.sum(total))


def read_all(data: Tensor) -> Tensor:
    """Sums of runs of `data` (float32, a multiple of 32,768 entries)."""
    programs = data.numel() // (BLOCK * ROUNDS)
    out = torch.empty(programs, device=data.device)
    _read[(programs,)](data, out, BLOCK, ROUNDS, num_warps=8)
    return out
