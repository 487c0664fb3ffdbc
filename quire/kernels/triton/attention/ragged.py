"""Triton attention in both directions among the tokens of a step: what encoders do with texts packed side by side.

A program takes a block of one text's queries for one head and walks over the tokens that they see. The list of blocks
is that of `prefill`, made on the device once per step.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.attention.prefill import list_blocks
from quire.kernels.triton.attention.shared import weigh
from quire.kernels.triton.launch import INTERPRETED, device_of, next_power_of_2
from quire.ops.ragged import RaggedSpec, ragged_attention
from quire.ops.registry import provide
from quire.ops.step import StepInputs


# q, k, v, out (tokens, HEADS, D); shown (texts,) int32 or None: so many tokens of each are seen by the others.
@triton.jit
def _attend(
    q, k, v, out, query_start, shown, blocks, total, scale,
    HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr, REACH: tl.constexpr, SHOWN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(1), tl.program_id(0)
    if block >= tl.load(total):
        return
    entry = blocks + block * 4
    row, first, count = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    start, stop = tl.load(query_start + row), tl.load(query_start + row + 1)
    if SHOWN:
        stop = start + tl.load(shown + row)
    d, line = tl.arange(0, DP), tl.arange(0, ROWS)
    inside = (d < D)[None, :]
    token = first + line
    at = (token.to(tl.int64) * HEADS + head)[:, None] * D + d[None, :]
    queries = tl.load(q + at, mask=(line < count)[:, None] & inside, other=0.0)
    DOT: tl.constexpr = tl.float32 if WIDE else queries.dtype
    begin, end = start, stop
    if REACH >= 0:
        begin, end = tl.maximum(first - REACH, start), tl.minimum(first + count + REACH, stop)
    acc = tl.zeros((ROWS, DP), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    for t in tl.range(begin, end, TILE, num_stages=STAGES):
        other = t + tl.arange(0, TILE)
        kept = (other < end)[:, None] & inside
        where = (other.to(tl.int64) * HEADS + head)[:, None] * D + d[None, :]
        keys = tl.load(k + where, mask=kept, other=0.0)
        scores = tl.dot(queries.to(DOT), tl.trans(keys.to(DOT)), input_precision="ieee")
        seen = (other < end)[None, :]
        if REACH >= 0:
            away = other[None, :] - token[:, None]
            seen = seen & (away <= REACH) & (away >= -REACH)
        p, top, weight, shrink = weigh(tl.where(seen, scores, float("-inf")), top, weight, scale, 0.0)
        values = tl.load(v + where, mask=kept, other=0.0)
        acc = tl.dot(p.to(queries.dtype).to(DOT), values.to(DOT), acc * shrink[:, None], input_precision="ieee")
    result = acc / tl.where(weight > 0, weight, 1.0)[:, None]
    tl.store(out + at, result, mask=(line < count)[:, None] & inside)


def _refuses(spec: RaggedSpec) -> str | None:
    return f"heads of {spec.head_dim} values do not fit; at most 256 do" if spec.head_dim > 256 else None


def shape_of(dim: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Queries and other tokens that a program takes at once, stages and warps, for heads of `dim` values."""
    if dtype.itemsize > 2:
        return (32, 32, 2, 8) if dim <= 128 else (16, 16, 2, 4)
    return (128, 64, 3, 8) if dim <= 128 else (64, 32, 2, 4)


@provide("triton", ragged_attention, _refuses)
def triton_ragged_attention(q: Tensor, k: Tensor, v: Tensor, step: StepInputs, spec: RaggedSpec) -> Tensor:
    """See `ragged_attention`."""
    q, k, v = (x.contiguous() for x in (q, k, v))
    out = torch.empty_like(q)
    if not len(q):
        return out
    dim = max(16, next_power_of_2(spec.head_dim))
    rows, tile, stages, warps = shape_of(dim, q.dtype)
    blocks, total = step.once(("blocks", rows), lambda: list_blocks(step, rows))
    _attend[(spec.heads, len(blocks))](
        q, k, v, out, step.query_start, step.seen, blocks, total, spec.scale,
        HEADS=spec.heads, D=spec.head_dim, DP=dim, ROWS=rows, TILE=tile, STAGES=device_of(q.device).stages(stages),
        REACH=-1 if spec.reach is None else spec.reach, SHOWN=step.seen is not None, WIDE=INTERPRETED,
        num_warps=warps,
    )  # fmt: skip
    return out
