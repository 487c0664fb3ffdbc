"""Inputs of a decode step in one kernel: every sequence computes one token, so packing is the identity.

Steps with longer chunks are left to the reference: they are rare, and their cost is in the model.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import cdiv
from quire.ops.inputs import Bounds, step_inputs
from quire.ops.registry import provide
from quire.ops.step import GroupInputs, StepInputs

BLOCK = 256

ALIGNED = 4
"""Entries of four bytes that begin with 16 aligned bytes."""


@triton.jit(do_not_specialize=["stride", "width", "table_width", "max_len"])
def _decode_inputs(
    order,  # (sequences,) int64
    tokens,  # (rows, max_len) int32
    computed,  # (rows,) int32
    table,  # (rows, table_width) int32
    numbers,  # out (3, stride) int64: token ids, positions, slots of each sequence
    lengths,  # out (2, stride) int32: query_start; seq_lens
    pages,  # out (sequences, width) int32
    stride,
    width,
    table_width,
    max_len,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    line = tl.program_id(0)
    part = tl.program_id(1)
    row = tl.load(order + line)
    at = part * BLOCK + tl.arange(0, BLOCK)
    entries = tl.load(table + row * table_width + at, mask=at < width, other=0)
    tl.store(pages + line.to(tl.int64) * width + at, entries, mask=at < width)
    if part == 0:
        position = tl.load(computed + row)
        page = tl.load(table + row * table_width + position // PAGE)
        tl.store(numbers + line, tl.load(tokens + row * max_len + position).to(tl.int64))
        tl.store(numbers + stride + line, position.to(tl.int64))
        tl.store(numbers + 2 * stride + line, page.to(tl.int64) * PAGE + position % PAGE)
        tl.store(lengths + line + 1, line + 1)
        tl.store(lengths + stride + line, position + 1)
        if line == 0:
            tl.store(lengths, 0)


@provide("triton", step_inputs, batch_invariant=True)
def triton_step_inputs(
    order: Tensor,
    counts: Tensor,
    sampling: Tensor,
    tokens: Tensor,
    computed: Tensor,
    page_tables: list[Tensor],
    page_sizes: list[int],
    bounds: Bounds,
) -> StepInputs:
    """See `step_inputs`."""
    total, max_query, max_seq = bounds
    if max_query > 1 or len(sampling) < total:
        made: StepInputs = step_inputs(order, counts, sampling, tokens, computed, page_tables, page_sizes, bounds)
        return made
    count = len(order)
    # Every line begins where kernels expect tensors to: they would be compiled anew otherwise.
    stride = cdiv(count + 1, ALIGNED) * ALIGNED
    lengths = torch.empty(2, stride, dtype=torch.int32, device=order.device)
    groups = []
    for table, size in zip(page_tables, page_sizes, strict=True):
        width = cdiv(max_seq, size)
        numbers = torch.empty(3, stride, dtype=torch.int64, device=order.device)
        pages = torch.empty(count, width, dtype=torch.int32, device=order.device)
        grid = (count, cdiv(width, BLOCK))
        widths = (stride, width, table.shape[1], tokens.shape[1])
        _decode_inputs[grid](
            order, tokens, computed, table, numbers, lengths, pages, *widths, PAGE=size, BLOCK=BLOCK, num_warps=2
        )
        groups.append(GroupInputs(pages, numbers[2, :count], size))
    return StepInputs(
        token_ids=numbers[0, :count],
        positions=numbers[1, :count],
        query_start=lengths[0, : count + 1],
        seq_lens=lengths[1, :count],
        logit_rows=sampling,
        groups=tuple(groups),
        max_query=max_query,
        max_seq=max_seq,
    )
