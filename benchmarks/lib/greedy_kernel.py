"""Triton's greedy draw as it would be if it did not care whether logits are finite. Importing it needs Triton.

The counterpart of quire/kernels/triton/step/greedy.py, whose two kernels it repeats without what tells of such rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.step.greedy import PART


@triton.jit(do_not_specialize=["vocab"])
def _maximum_of_parts(logits, tops, ids, vocab, part_size: tl.constexpr):
    row = tl.program_id(0)
    part = tl.program_id(1)
    at = part * part_size + tl.arange(0, part_size)
    x = tl.load(logits + row.to(tl.int64) * vocab + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
    top = tl.max(x, 0)
    first = tl.min(tl.where(x == top, at, vocab), 0)
    entry = row * tl.num_programs(1) + part
    tl.store(tops + entry, top)
    tl.store(ids + entry, first)


@triton.jit(do_not_specialize=["parts", "vocab"])
def _maximum(tops, ids, drawn, parts, vocab, width: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, width)
    x = tl.load(tops + row * parts + at, mask=at < parts, other=-float("inf"))
    found = tl.load(ids + row * parts + at, mask=at < parts, other=vocab)
    tl.store(drawn + row, tl.min(tl.where(x == tl.max(x, 0), found, vocab), 0).to(tl.int64))


def unchecked(logits: Tensor) -> Tensor:
    """The most probable token of each row, (n,) int64, whatever it means; of (n, vocab) logits."""
    rows, vocab = logits.shape
    parts = triton.cdiv(vocab, PART)
    tops = torch.empty(rows, parts, dtype=torch.float32, device=logits.device)
    ids = torch.empty(rows, parts, dtype=torch.int32, device=logits.device)
    drawn = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _maximum_of_parts[rows, parts](logits, tops, ids, vocab, part_size=PART, num_warps=8)
    _maximum[(rows,)](tops, ids, drawn, parts, vocab, width=triton.next_power_of_2(parts), num_warps=1)
    return drawn
