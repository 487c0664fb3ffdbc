"""The most probable token in two small kernels: a maximum per part of the vocabulary, then one over the parts.

NaN is read as infinity, so that the maxima themselves tell of rows that are not finite.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import cdiv, next_power_of_2
from quire.ops.greedy import greedy_sample
from quire.ops.registry import provide

PART = 4096


@triton.jit(do_not_specialize=["vocab"])
def _maximum_of_parts(
    logits,  # (rows, vocab)
    tops,  # out (rows, parts) float32; inf if the part holds NaN
    ids,  # out (rows, parts) int32, the first token that has it
    vocab,
    PART: tl.constexpr,
):
    row = tl.program_id(0)
    part = tl.program_id(1)
    at = part * PART + tl.arange(0, PART)
    x = tl.load(logits + row.to(tl.int64) * vocab + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
    x = tl.where(x != x, float("inf"), x)
    top = tl.max(x, 0)
    first = tl.min(tl.where(x == top, at, vocab), 0)
    entry = row * tl.num_programs(1) + part
    tl.store(tops + entry, top)
    tl.store(ids + entry, first)


@triton.jit(do_not_specialize=["rows", "parts", "vocab"])
def _maximum(
    tops,  # (rows, parts) float32
    ids,  # (rows, parts) int32
    drawn,  # out (2, rows) int64
    rows,
    parts,
    vocab,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0)
    at = tl.arange(0, WIDTH)
    x = tl.load(tops + row * parts + at, mask=at < parts, other=-float("inf"))
    found = tl.load(ids + row * parts + at, mask=at < parts, other=vocab)
    top = tl.max(x, 0)
    token = tl.min(tl.where(x == top, found, vocab), 0)
    bad = tl.abs(top) == float("inf")
    tl.store(drawn + row, tl.where(bad, 0, token).to(tl.int64))
    tl.store(drawn + rows + row, bad.to(tl.int64))


@provide("triton", greedy_sample, batch_invariant=True)
def triton_greedy_sample(logits: Tensor) -> Tensor:
    """See `greedy_sample`."""
    logits = logits.contiguous()
    rows, vocab = logits.shape
    parts = cdiv(vocab, PART)
    tops = torch.empty(rows, parts, dtype=torch.float32, device=logits.device)
    ids = torch.empty(rows, parts, dtype=torch.int32, device=logits.device)
    drawn = torch.empty(2, rows, dtype=torch.int64, device=logits.device)
    _maximum_of_parts[rows, parts](logits, tops, ids, vocab, PART=PART, num_warps=8)
    _maximum[(rows,)](tops, ids, drawn, rows, parts, vocab, WIDTH=next_power_of_2(parts), num_warps=1)
    return drawn
