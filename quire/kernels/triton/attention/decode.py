"""Triton attention for steps in which every sequence computes one token: norm, rope, page write and attention at once.

The context of a row is cut into splits whose borders depend on that row's length and the size of the batch, never on
what its batch mates hold. A list of all splits is made on the device once per step, and a fixed number of programs
works through it, so one recorded graph serves every length. Whoever ends a row's last split merges them, in order.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.attention.shared import (
    INTERPRETED,
    LOG2E,
    begin,
    bounded,
    device_of,
    partner,
    rotated,
)
from quire.ops.attention import AttentionSpec, HeadWeights, KVPages, attend
from quire.ops.registry import provide
from quire.ops.step import StepInputs


@dataclass(frozen=True, slots=True)
class Shape:
    """How the work is cut.

    Attributes:
        chunk: splits begin at multiples of so many tokens, counted from the chunk of the first one that the row needs.
        splits: most of one row; bounds the memory for what is left to be merged.
        tile: tokens read at once; divides `chunk`.
        stages: of the loop over tiles, two of which fetch pages' numbers.
        warps: of a program.
        resident: programs for each multiprocessor.
        registers: most of a thread, so that as many programs fit; only NVIDIA's compiler is told.
    """

    chunk: int = 128
    splits: int = 16
    tile: int = 64
    stages: int = 5
    warps: int = 4
    resident: int = 3
    registers: int = 168


def shape_of(pairs: int, dim: int, itemsize: int) -> Shape:
    """For `pairs` of a row and a KV head, and heads of `dim` values (a power of two) of `itemsize` bytes.

    Two tiles fit thrice into shared memory. Each split costs about 10 us on an H200, hidden where there are many.
    """
    tile = max(16, min(64, 64 * 128 * 2 // (dim * itemsize)))
    chunk = next((chunk for most, chunk in ((16, 64), (32, 128), (128, 256)) if pairs <= most), 512)
    alone = pairs <= 16
    return Shape(chunk=chunk, splits=32 if pairs <= 128 else 16, tile=tile, registers=255 if alone else 168)


@triton.jit
def _list_splits(
    lengths,  # (rows,) int32
    entries,  # out (rows * SPLITS, 8) int32: row, first token, end, splits of the row, their first entry, length, index
    total,  # out (1,) int32, entries in all
    arrived,  # out (rows, KV_HEADS) int32, cleared
    rows,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    SPLITS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    length = tl.load(lengths + at, mask=at < rows, other=0)
    first = length * 0
    if WINDOW:
        first = tl.maximum(length - WINDOW, 0) // CHUNK * CHUNK
    chunks = tl.maximum((length - first + CHUNK - 1) // CHUNK, 1)
    width = (chunks + SPLITS - 1) // SPLITS
    count = (chunks + width - 1) // width
    before = tl.sum(tl.where(at < row, count, 0), 0)
    mine = at == row
    count = tl.sum(tl.where(mine, count, 0), 0)
    first = tl.sum(tl.where(mine, first, 0), 0)
    width = tl.sum(tl.where(mine, width, 0), 0) * CHUNK
    length = tl.sum(tl.where(mine, length, 0), 0)
    split = tl.arange(0, SPLITS)
    here = split < count
    entry = entries + (before + split) * 8
    start = first + split * width
    tl.store(entry, tl.zeros_like(split) + row, mask=here)
    tl.store(entry + 1, start, mask=here)
    tl.store(entry + 2, tl.minimum(start + width, length), mask=here)
    tl.store(entry + 3, tl.zeros_like(split) + count, mask=here)
    tl.store(entry + 4, tl.zeros_like(split) + before, mask=here)
    tl.store(entry + 5, tl.zeros_like(split) + length, mask=here)
    tl.store(entry + 6, before + split, mask=here)
    tl.store(total, before + count, mask=row == rows - 1)
    for head in range(KV_HEADS):
        tl.store(arrived + row * KV_HEADS + head, 0)


@triton.jit
def _turned(heads, norm, angles, eps, D: tl.constexpr, DP: tl.constexpr, ROTARY: tl.constexpr, NORM: tl.constexpr):
    """The heads at the pointers `heads` (n,), normed and rotated: (n, DP) float32."""
    d = tl.arange(0, DP)
    inside = d < D
    other = partner(d, ROTARY, DP)
    x = tl.load(heads[:, None] + d[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
    y = tl.load(heads[:, None] + other[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        x *= scale * tl.load(norm + d, mask=inside, other=0.0).to(tl.float32)[None, :]
        y *= scale * tl.load(norm + other, mask=inside, other=0.0).to(tl.float32)[None, :]
    return rotated(x, y, d, angles, ROTARY)


@triton.jit
def _merge(
    partial, logs, out, first, count, head, HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr,
    GROUP_P: tl.constexpr, SPLITS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Add up a row's splits, in order, for the query heads of one KV head."""
    d = tl.arange(0, DP)
    g = tl.arange(0, GROUP_P)
    heads = head * GROUP + g
    split = tl.arange(0, SPLITS)
    log = logs + (first + split)[:, None] * HEADS + heads[None, :]
    there = (split < count)[:, None] & (g < GROUP)[None, :]
    top = tl.max(tl.load(log, mask=there, other=float("-inf"), cache_modifier=".cg"), 0)
    acc = tl.zeros((GROUP_P, DP), tl.float32)
    weight = tl.zeros((GROUP_P,), tl.float32)
    some = tl.arange(0, AT_ONCE)
    for done in tl.static_range(0, SPLITS, AT_ONCE):
        part = ((first + done + some).to(tl.int64) * HEADS)[:, None] + heads[None, :]
        there = (done + some < count)[:, None] & (g < GROUP)[None, :]
        w = tl.exp2(tl.load(logs + part, mask=there, other=float("-inf"), cache_modifier=".cg") - top[None, :])
        w = tl.where(there, w, 0.0)
        mask = there[:, :, None] & (d < D)[None, None, :]
        o = tl.load(partial + part[:, :, None] * D + d[None, None, :], mask=mask, other=0.0, cache_modifier=".cg")
        acc += tl.sum(o * w[:, :, None], 0)
        weight += tl.sum(w, 0)
    result = acc / tl.where(weight > 0, weight, 1.0)[:, None]
    tl.store(out + heads[:, None] * D + d[None, :], result, mask=(g < GROUP)[:, None] & (d < D)[None, :])


@triton.jit
def _newest(
    queries, base, k_pool, v_pool, slot, head, k_norm, angle, scale, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, CAP: tl.constexpr,
    NORM: tl.constexpr, ROTARY: tl.constexpr,
):  # fmt: skip
    """Write the new token's key and value to their page: its scores (n,), in powers of 2, and value (1, DP) float32."""
    d = tl.arange(0, DP)[None, :]
    first = tl.arange(0, 1)
    key = _turned(base + (HEADS + head) * D + first, k_norm, angle, eps, D, DP, ROTARY, NORM).to(
        k_pool.dtype.element_ty
    )
    value = tl.load(base + (HEADS + KV_HEADS + head) * D + first[:, None] + d, mask=d < D, other=0.0)
    at = (slot * KV_HEADS + head) * D + first[:, None] + d
    tl.store(k_pool + at, key, mask=d < D)
    tl.store(v_pool + at, value, mask=d < D)
    score = tl.sum(queries.to(tl.float32) * key.to(tl.float32), 1) * scale
    if CAP > 0.0:
        score = bounded(score, CAP)
    return score * LOG2E, value.to(tl.float32)


@triton.jit
def _fetch(
    t, low, end, k_pool, v_pool, table, head,
    KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The keys and values, (TILE, DP), of the tokens from t on, and which of these lie between `low` and `end`."""
    d = tl.arange(0, DP)
    at = t + tl.arange(0, TILE)
    seen = (at >= low) & (at < end)
    if PAGE % TILE == 0:
        slot = tl.load(table + t // PAGE).to(tl.int64) * PAGE + t % PAGE + tl.arange(0, TILE)
    else:
        slot = tl.load(table + at // PAGE, mask=seen, other=0).to(tl.int64) * PAGE + at % PAGE
    where = (slot * KV_HEADS + head)[:, None] * D + d[None, :]
    kept = seen[:, None] & (d < D)[None, :]
    return tl.load(k_pool + where, mask=kept, other=0.0), tl.load(v_pool + where, mask=kept, other=0.0), seen


@triton.jit
def _add(
    acc, top, weight, queries, keys, values, seen, scale, CAP: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Attend to one tile."""
    DOT: tl.constexpr = tl.float32 if WIDE else keys.dtype
    scores = tl.dot(queries.to(DOT), tl.trans(keys.to(DOT)), input_precision="ieee") * scale
    if CAP > 0.0:
        scores = bounded(scores, CAP)
    scores = tl.where(seen[None, :], scores * LOG2E, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    # From -inf, where nothing has been seen yet, nothing may be subtracted.
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    shrink = tl.exp2(top - base)
    p = tl.exp2(scores - base[:, None])
    acc = tl.dot(p.to(values.dtype).to(DOT), values.to(DOT), acc * shrink[:, None], input_precision="ieee")
    return acc, new_top, weight * shrink + tl.sum(p, 1)


@triton.jit
def _leave(
    result, logs_of, out, partial, logs, arrived, first, index, count, head,
    HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr, GROUP_P: tl.constexpr,
    ROWS: tl.constexpr, SPLITS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Store a split's result (ROWS, DP): as the row's, if it has no other, else to be merged, by the last to arrive."""
    d = tl.arange(0, DP)[None, :]
    g = tl.arange(0, ROWS)
    heads = head * GROUP + g
    mine = (g < GROUP)[:, None] & (d < D)
    if count == 1:
        tl.store(out + heads[:, None] * D + d, result, mask=mine)
    else:
        part = index.to(tl.int64) * HEADS + heads
        tl.store(partial + part[:, None] * D + d, result, mask=mine)
        tl.store(logs + part, logs_of, mask=g < GROUP)
        # Every thread's stores before the count, and the count before the loads of whoever comes last.
        tl.debug_barrier()
        if tl.atomic_add(arrived, 1, sem="acq_rel") == count - 1:
            _merge(partial, logs, out, first, count, head, HEADS, D, DP, GROUP, GROUP_P, SPLITS, AT_ONCE)
            tl.store(arrived, 0)


# qkv (rows, HEADS + 2 * KV_HEADS, D): queries, keys, values; out (rows, HEADS, D); pools [pages, PAGE, KV_HEADS, D];
# table (rows, table_stride) int32; slots (rows,) int64; angles (positions, ROTARY) float32; partial (entries, HEADS, D)
# float32, each split's result; logs (entries, HEADS) float32, the binary logarithm of the sum of its weights.
@triton.jit(do_not_specialize=["table_stride"])
def _decode(
    qkv, out, k_pool, v_pool, table, table_stride, slots, angles, q_norm, k_norm,
    entries, total, arrived, partial, logs, scale, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr,
    GROUP_P: tl.constexpr, ROWS: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
    SPLITS: tl.constexpr, AT_ONCE: tl.constexpr, EARLY: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    NORM: tl.constexpr, ROTARY: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    begin(PDL)
    g = tl.arange(0, ROWS)
    for item in range(tl.program_id(0), tl.load(total) * KV_HEADS, tl.num_programs(0)):
        head = item % KV_HEADS
        entry = entries + item // KV_HEADS * 8
        row, start, end = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
        count, first, length, index = tl.load(entry + 3), tl.load(entry + 4), tl.load(entry + 5), tl.load(entry + 6)
        newest = end == length
        end -= newest.to(tl.int32)
        low = tl.maximum(length - WINDOW, 0) if WINDOW else 0
        start = tl.maximum(start, low // TILE * TILE)
        pages = table + row * table_stride
        if EARLY:
            # On their way while the heads are prepared.
            keys, values, seen = _fetch(start, low, end, k_pool, v_pool, pages, head, KV_HEADS, D, DP, PAGE, TILE)
        angle = angles + tl.maximum(length - 1, 0).to(tl.int64) * ROTARY
        base = qkv + row.to(tl.int64) * (HEADS + 2 * KV_HEADS) * D
        heads = head * GROUP + tl.minimum(g, GROUP - 1)
        queries = _turned(base + heads * D, q_norm, angle, eps, D, DP, ROTARY, NORM).to(k_pool.dtype.element_ty)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        weight = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, DP), tl.float32)
        if newest:
            # The new key and value go from registers to the page and into the sums: nobody reads that slot.
            score, value = _newest(
                queries, base, k_pool, v_pool, tl.load(slots + row), head, k_norm, angle, scale, eps,
                HEADS, KV_HEADS, D, DP, CAP, NORM, ROTARY,
            )  # fmt: skip
            if length > 0:
                top = score
                weight += 1.0
                acc += value
        if EARLY:
            acc, top, weight = _add(acc, top, weight, queries, keys, values, seen, scale, CAP, WIDE)
            start += TILE
        for t in tl.range(start, end, TILE, num_stages=STAGES):
            keys, values, seen = _fetch(t, low, end, k_pool, v_pool, pages, head, KV_HEADS, D, DP, PAGE, TILE)
            acc, top, weight = _add(acc, top, weight, queries, keys, values, seen, scale, CAP, WIDE)
        weight = tl.where(weight > 0, weight, 1.0)
        _leave(
            acc / weight[:, None], top + tl.log2(weight), out + row.to(tl.int64) * HEADS * D,
            partial, logs, arrived + row * KV_HEADS + head, first, index, count, head,
            HEADS, D, DP, GROUP, GROUP_P, ROWS, SPLITS, AT_ONCE,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Work:
    """What all layers of a step share: the list of splits, and room for what they leave to be merged."""

    entries: Tensor
    total: Tensor
    arrived: Tensor
    partial: Tensor
    logs: Tensor


def _refuses(spec: AttentionSpec) -> str | None:
    if spec.step != "decode":
        return "only for steps in which every sequence computes one token"
    if spec.kept != spec.dtype:
        return f"computes in {spec.dtype} on pages of that dtype only, not {spec.kept}"
    if spec.head_dim > 256:
        return f"heads of {spec.head_dim} values do not fit; at most 256 do"
    return None


@provide("triton", attend, _refuses)
def triton_attend(qkv: Tensor, weights: HeadWeights, pages: KVPages, step: StepInputs, spec: AttentionSpec) -> Tensor:
    """See `attend`. Every sequence has one token."""
    rows, where = len(qkv), step.groups[pages.group]
    out = torch.empty(rows, spec.heads * spec.head_dim, dtype=qkv.dtype, device=qkv.device)
    if not rows:
        return out
    device, group, dim = device_of(qkv.device), spec.heads // spec.kv_heads, triton.next_power_of_2(spec.head_dim)
    group_p = triton.next_power_of_2(group)
    shape = shape_of(rows * spec.kv_heads, dim, qkv.dtype.itemsize)
    key = ("splits", spec.window, spec.heads, spec.kv_heads, spec.head_dim)
    work = step.once(key, lambda: _list(step.seq_lens, spec, shape))
    _decode[(min(shape.resident * device.processors, rows * shape.splits * spec.kv_heads),)](
        qkv.contiguous(), out, pages.k, pages.v, where.page_table, where.page_table.stride(0), where.slots,
        weights.table, weights.q_norm, weights.k_norm, work.entries, work.total, work.arrived, work.partial, work.logs,
        spec.scale, spec.norm_eps or 0.0, HEADS=spec.heads, KV_HEADS=spec.kv_heads, D=spec.head_dim, DP=max(dim, 16),
        GROUP=group, GROUP_P=group_p, ROWS=max(group_p, 16), PAGE=pages.k.shape[1], TILE=shape.tile,
        STAGES=device.stages(shape.stages), SPLITS=shape.splits,
        AT_ONCE=max(1, min(shape.splits, 4096 // (group_p * dim))),
        EARLY=shape.chunk == shape.tile, WINDOW=spec.window or 0, CAP=spec.soft_cap or 0.0,
        NORM=spec.norm_eps is not None, ROTARY=spec.rotary_dim, WIDE=INTERPRETED, num_warps=shape.warps,
        **device.options, **({"maxnreg": shape.registers} if device.nvidia else {}),
    )  # fmt: skip
    return out


def _list(lengths: Tensor, spec: AttentionSpec, shape: Shape) -> _Work:
    rows, device = len(lengths), lengths.device

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    most = rows * shape.splits
    work = _Work(
        empty(most, 8),
        empty(1),
        empty(rows, spec.kv_heads),
        empty(most, spec.heads, spec.head_dim, dtype=torch.float32),
        empty(most, spec.heads, dtype=torch.float32),
    )
    _list_splits[(rows,)](
        lengths, work.entries, work.total, work.arrived, rows, WINDOW=spec.window or 0, CHUNK=shape.chunk,
        SPLITS=shape.splits, KV_HEADS=spec.kv_heads, BLOCK=max(16, triton.next_power_of_2(rows)), num_warps=1,
    )  # fmt: skip
    return work
