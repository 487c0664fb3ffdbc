"""Triton attention for any step: prompts, chunks of them and sequences that compute one token, packed into one call.

A program takes a block of a sequence's queries, together with all query heads that share a KV head, and walks over the
pages that they see. The list of blocks is made on the device once per step, so the host must know only how many there
can be. Blocks that see most come first.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.attention.narrow import halved, kept, scales, widened
from quire.kernels.triton.attention.shared import LOG2E, bulk_of, first_seen, weigh
from quire.kernels.triton.launch import INTERPRETED, device_of, next_power_of_2
from quire.ops.attention import AttentionSpec, KVPages, paged_attention
from quire.ops.registry import provide
from quire.ops.step import StepInputs


@triton.jit(do_not_specialize=["rows"])
def _write_blocks(
    query_start,  # (rows + 1,) int32
    lengths,  # (rows,) int32
    blocks,  # out (blocks, 4) int32: row, first query of the sequence in the block, its queries, position of the first
    total,  # out (1,) int32, blocks in all
    rows,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    row = tl.program_id(0)
    before = 0
    for first in range(0, row, BLOCK):
        at = first + tl.arange(0, BLOCK)
        ends = tl.load(query_start + 1 + at, mask=at < row, other=0)
        starts = tl.load(query_start + at, mask=at < row, other=0)
        before += tl.sum((ends - starts + QUERIES - 1) // QUERIES, 0)
    start = tl.load(query_start + row)
    stop = tl.load(query_start + row + 1)
    count = (stop - start + QUERIES - 1) // QUERIES
    position = tl.maximum(tl.load(lengths + row) - (stop - start), 0)
    some = tl.arange(0, AT_ONCE)
    for begin in range(0, count, AT_ONCE):
        index = begin + some
        # The last block sees most.
        entry = blocks + (before + count - 1 - index) * 4
        here = index < count
        tl.store(entry, index * 0 + row, mask=here)
        tl.store(entry + 1, start + index * QUERIES, mask=here)
        tl.store(entry + 2, tl.minimum(stop - start - index * QUERIES, QUERIES), mask=here)
        tl.store(entry + 3, position + index * QUERIES, mask=here)
    tl.store(total, before + count, mask=row == rows - 1)


@triton.jit
def _walk(
    acc, top, weight, queries, begin, end, position, length, k_pool, v_pool, table, head, scale,
    KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, CAP: tl.constexpr, WIDE: tl.constexpr,
    FORMAT: tl.constexpr, CONVERTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Attend to the tokens begin to end, both multiples of TILE. Not MASKED: every query sees every one of them."""
    DOT: tl.constexpr = tl.float32 if WIDE else queries.dtype
    BOUND: tl.constexpr = MASKED and (WINDOW > 0 or CHUNK > 0)
    d = tl.arange(0, DP)
    first = first_seen(position, WINDOW, CHUNK)
    for t in tl.range(begin, end, TILE, num_stages=STAGES):
        at = t + tl.arange(0, TILE)
        there = at < length
        if BOUND:
            there = there & (at >= tl.min(first, 0))
        kept = there[:, None] & (d < D)[None, :]
        if PAGE % TILE == 0:
            slot = tl.load(table + t // PAGE).to(tl.int64) * PAGE + t % PAGE + tl.arange(0, TILE)
        else:
            slot = tl.load(table + at // PAGE, mask=there, other=0).to(tl.int64) * PAGE + at % PAGE
        where = (slot * KV_HEADS + head)[:, None] * D + d[None, :]
        keys = widened(tl.load(k_pool + where, mask=kept, other=0.0), FORMAT, CONVERTS)
        scores = tl.dot(queries.to(DOT), tl.trans(keys.to(DOT)), input_precision="ieee")
        if MASKED:
            seen = at[None, :] <= position[:, None]
            if BOUND:
                seen = seen & (at[None, :] >= first[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        p, top, weight, shrink = weigh(scores, top, weight, scale, CAP)
        values = widened(tl.load(v_pool + where, mask=kept, other=0.0), FORMAT, CONVERTS)
        acc = tl.dot(p.to(queries.dtype).to(DOT), values.to(DOT), acc * shrink[:, None], input_precision="ieee")
    return acc, top, weight


@triton.jit
def _stream(
    queries, begin, end, k_bulk, v_bulk, table, head, scale,
    D: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr, CAP: tl.constexpr,
    WIDE: tl.constexpr, FORMAT: tl.constexpr, CONVERTS: tl.constexpr,
):  # fmt: skip
    """Attend to the tokens begin to end, all of which every query sees, by the copy engine.

    The values of a tile are added up while the scores of the next are weighed. For that the compiler must find neither
    branches around the products nor sums that began elsewhere: with no tiles at all, one of zeros is taken, from
    beyond the pool's borders.
    """
    ROWS: tl.constexpr = queries.shape[0]
    DOT: tl.constexpr = tl.float32 if WIDE else queries.dtype
    some = end > begin
    slot = tl.where(some, tl.load(table + begin // PAGE) * PAGE + begin % PAGE, -TILE)
    acc = tl.zeros((ROWS, D), tl.float32)
    keys = widened(k_bulk.load([slot, head * D]), FORMAT, CONVERTS)
    scores = tl.dot(queries.to(DOT), tl.trans(keys.to(DOT)), input_precision="ieee")
    scores = tl.where(some, scores, float("-inf"))
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    p, top, weight, shrink = weigh(scores, top, tl.zeros((ROWS,), tl.float32), scale, CAP)
    for t in tl.range(begin + TILE, end, TILE, num_stages=STAGES):
        next_slot = tl.load(table + t // PAGE) * PAGE + t % PAGE
        keys = widened(k_bulk.load([next_slot, head * D]), FORMAT, CONVERTS)
        scores = tl.dot(queries.to(DOT), tl.trans(keys.to(DOT)), input_precision="ieee")
        values = widened(v_bulk.load([slot, head * D]), FORMAT, CONVERTS)
        acc = tl.dot(p.to(queries.dtype).to(DOT), values.to(DOT), acc * shrink[:, None], input_precision="ieee")
        p, top, weight, shrink = weigh(scores, top, weight, scale, CAP)
        slot = next_slot
    values = widened(v_bulk.load([slot, head * D]), FORMAT, CONVERTS)
    acc = tl.dot(p.to(queries.dtype).to(DOT), values.to(DOT), acc * shrink[:, None], input_precision="ieee")
    return acc, top, weight


@triton.jit
def _cuts(start, count, TILE: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, ALIKE: tl.constexpr):
    """Of a block of `count` queries from `start` on: the first token that any of them sees, the first that all see, and
    the first that comes after one of them; borders of tiles."""
    begin, inner = 0, 0
    clear = (start + 1) // TILE * TILE
    if WINDOW > 0 or CHUNK > 0:
        begin = tl.maximum(first_seen(start, WINDOW, CHUNK), 0) // TILE * TILE
        inner = tl.maximum(first_seen(start + count - 1, WINDOW, CHUNK) + TILE - 1, 0) // TILE * TILE
        inner = tl.minimum(inner, tl.maximum(clear, begin))
        clear = tl.maximum(clear, inner)
    if ALIKE:
        # Which tiles are clear depends on the other queries of the block.
        clear = begin
        inner = begin
    return begin, inner, clear


# q and out (tokens, HEADS, D); pools [pages, PAGE, KV_HEADS, D]; table (rows, table_stride) int32.
@triton.jit(do_not_specialize=["table_stride"])
def _prefill(
    q, out, k_pool, v_pool, k_bulk, v_bulk, sinks, table, table_stride, lengths, blocks, total, scale, v_scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr,
    GROUP_P: tl.constexpr, ROWS: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, CAP: tl.constexpr, WIDE: tl.constexpr, FORMAT: tl.constexpr,
    CONVERTS: tl.constexpr, ALIKE: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(1), tl.program_id(0)
    if block >= tl.load(total):
        return
    entry = blocks + block * 4
    row, first, count, start = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)
    length = tl.load(lengths + row)
    d = tl.arange(0, DP)
    line = tl.arange(0, ROWS)
    index, member = line // GROUP_P, line % GROUP_P
    mine = ((index < count) & (member < GROUP))[:, None] & (d < D)[None, :]
    at = ((first + index).to(tl.int64) * HEADS + head * GROUP + member)[:, None] * D + d[None, :]
    queries = halved(tl.load(q + at, mask=mine, other=0.0), FORMAT)
    position = start + index
    table += row * table_stride
    stop = tl.minimum(start + count, length)
    begin, inner, clear = _cuts(start, count, TILE, WINDOW, CHUNK, ALIKE)
    if k_bulk is not None:
        acc, top, weight = _stream(
            queries, inner, clear, k_bulk, v_bulk, table, head, scale,
            D, PAGE, TILE, STAGES, CAP, WIDE, FORMAT, CONVERTS,
        )  # fmt: skip
    else:
        acc = tl.zeros((ROWS, DP), tl.float32)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        weight = tl.zeros((ROWS,), tl.float32)
        acc, top, weight = _walk(
            acc, top, weight, queries, inner, clear, position, length, k_pool, v_pool, table, head, scale,
            KV_HEADS, D, DP, PAGE, TILE, STAGES, WINDOW, CHUNK, CAP, WIDE, FORMAT, CONVERTS, False,
        )  # fmt: skip
    if WINDOW > 0 or CHUNK > 0:
        acc, top, weight = _walk(
            acc, top, weight, queries, begin, inner, position, length, k_pool, v_pool, table, head, scale,
            KV_HEADS, D, DP, PAGE, TILE, STAGES, WINDOW, CHUNK, CAP, WIDE, FORMAT, CONVERTS, True,
        )  # fmt: skip
    acc, top, weight = _walk(
        acc, top, weight, queries, clear, stop, position, length, k_pool, v_pool, table, head, scale,
        KV_HEADS, D, DP, PAGE, TILE, STAGES, WINDOW, CHUNK, CAP, WIDE, FORMAT, CONVERTS, True,
    )  # fmt: skip
    if sinks is not None:
        sink = tl.load(sinks + head * GROUP + tl.minimum(member, GROUP - 1)).to(tl.float32) * LOG2E
        # The highest of both, so that neither grows beyond bounds.
        highest = tl.maximum(top, sink)
        acc *= tl.exp2(top - highest)[:, None]
        weight = weight * tl.exp2(top - highest) + tl.exp2(sink - highest)
    result = acc / tl.where(weight > 0, weight, 1.0)[:, None] * v_scale
    tl.store(out + at, result, mask=mine)


COPIED = 64
"""Tokens that the copy engine brings at once."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Lines (queries times the heads that share a KV head) and tokens that a program takes at once, and how.

    `bulk` copies tiles of keys and values by the copy engine; they are of COPIED tokens then.
    """

    lines: int
    tile: int
    stages: int
    warps: int
    bulk: bool = False


def shape_of(dim: int, dtype: torch.dtype, most_lines: int | None, engine: bool) -> Shape:
    """For heads of `dim` values (a power of two) and sequences of at most so many lines; None is any number.

    `engine`: the copy engine can serve these pages. Two programs of 4 warps then share a multiprocessor, one of them
    multiplying while the other weighs: 1.07 to 1.28 times cuDNN's time on an H200; with 8 warps it is 1.2 to 1.4.
    """
    if dtype.itemsize > 2:
        return Shape(32, 32, 2, 8) if dim <= 128 else Shape(16, 16, 2, 4)
    if most_lines is not None and most_lines <= 16:
        return Shape(16, 64 if dim <= 128 else 32, 3, 4)
    if dim > 128:
        return Shape(64, 32, 2, 4)
    return Shape(64, 64, 2, 4, bulk=True) if engine else Shape(128, 64, 3, 8)


def _refuses(spec: AttentionSpec) -> str | None:
    return f"heads of {spec.head_dim} values do not fit; at most 256 do" if spec.head_dim > 256 else None


@provide("triton", paged_attention, _refuses, batch_invariant=True)
def triton_paged_attention(
    q: Tensor, pages: KVPages, step: StepInputs, spec: AttentionSpec, sinks: Tensor | None = None
) -> Tensor:
    """See `paged_attention`."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not q.shape[0]:
        return out
    q = q.contiguous()
    group, dim = spec.heads // spec.kv_heads, max(16, next_power_of_2(spec.head_dim))
    group_p, page_table = next_power_of_2(group), step.groups[pages.group].page_table
    (k_pool, v_pool, form), (k_scale, v_scale) = kept(pages), scales(pages)
    bulk = (None, None) if spec.batch_invariant else bulk_of(KVPages(k_pool, v_pool), COPIED)
    widest = max(q.dtype, pages.k.dtype, key=lambda dtype: dtype.itemsize)
    most_lines = None if spec.batch_invariant else group_p * step.max_query
    shape = shape_of(dim, widest, most_lines, bulk[0] is not None)
    queries = max(1, shape.lines // group_p)
    bulk = bulk if shape.bulk else (None, None)
    blocks, total = step.once(("blocks", queries), lambda: list_blocks(step, queries))
    _prefill[(spec.kv_heads, len(blocks))](
        q, out, k_pool, v_pool, *bulk, sinks, page_table, page_table.stride(0), step.seq_lens, blocks, total,
        spec.scale * k_scale, v_scale,
        HEADS=spec.heads, KV_HEADS=spec.kv_heads, D=spec.head_dim, DP=dim, GROUP=group, GROUP_P=group_p,
        ROWS=queries * group_p, PAGE=pages.k.shape[1], TILE=shape.tile,
        STAGES=device_of(q.device).stages(shape.stages), WINDOW=spec.window or 0, CHUNK=spec.chunk or 0,
        CAP=spec.soft_cap or 0.0, WIDE=INTERPRETED, **form, ALIKE=spec.batch_invariant, num_warps=shape.warps,
    )  # fmt: skip
    return out


def list_blocks(step: StepInputs, queries: int) -> tuple[Tensor, Tensor]:
    """(blocks, 4) int32 with room for as many blocks as there can be, and (1,) int32 how many there are."""
    rows, device = len(step.seq_lens), step.seq_lens.device
    blocks = torch.empty(len(step.positions) // queries + rows, 4, dtype=torch.int32, device=device)
    total = torch.empty(1, dtype=torch.int32, device=device)
    _write_blocks[(rows,)](
        step.query_start, step.seq_lens, blocks, total, rows, QUERIES=queries,
        BLOCK=128, AT_ONCE=32, num_warps=1,
    )  # fmt: skip
    return blocks, total
