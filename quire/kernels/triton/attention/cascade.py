"""Triton attention to the pages with which sequences begin alike: read once for all of them, before each one's own.

Sequences that share are cut into tiles of query rows, the shared tokens into splits; a list of both is made on the
device once per step, so one recorded graph serves every grouping. The results are further parts of each row, to be
merged with those of its own tokens. Called by `decode`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.attention.listing import Elsewhere, Work
from quire.kernels.triton.attention.narrow import halved, kept, scales, widened
from quire.kernels.triton.attention.shared import LOG2E, bounded, bulk_of
from quire.kernels.triton.launch import INTERPRETED, begin, device_of, next_power_of_2
from quire.ops.attention import AttentionSpec, KVPages
from quire.ops.step import SharedInputs, StepInputs


@dataclass(frozen=True, slots=True)
class Shape:
    """How the work is cut.

    Attributes:
        lines: query rows (sequences times the heads that share a KV head) of a program.
        tile: tokens read at once.
        stages: of the loop over tiles.
        warps: of a program.
        resident: programs for each multiprocessor; the tokens are cut so that there is work for all of them.
        bulk: tiles of keys and values come by the copy engine, where there is one and they are whole.
    """

    lines: int
    tile: int
    stages: int
    warps: int
    resident: int = 1
    bulk: bool = False


def shape_of(lines: int, dim: int, itemsize: int) -> Shape:
    """For at most `lines` query rows that share a KV head, and heads of `dim` values of `itemsize` bytes.

    Measured on an H200 for heads of 128 values: tiles of 64 lines are the fastest, even where they are half empty.
    """
    if itemsize > 2:
        return Shape(32, 32, 2, 8) if dim <= 128 else Shape(16, 16, 2, 4)
    if dim > 128:
        return Shape(64 if lines > 16 else 16, 32, 3, 4, 2)
    if lines <= 16:
        return Shape(16, 64, 5, 4, 3, bulk=True)
    return Shape(64, 64, 6, 4, 1, bulk=True) if lines <= 64 else Shape(64, 64, 5, 4, 2, bulk=True)


def most_splits(rows: int) -> int:
    """Into how many parts a beginning is cut at most, in a batch of so many sequences; bounds their memory."""
    return max(2, min(16, 1024 // max(rows, 1)))


@triton.jit
def _list_members(
    numbers,  # (rows,) int32, as in SharedInputs
    tokens,  # (rows,) int32
    members,  # out (rows,) int32: sequences that share, those of a group side by side
    groups,  # out (rows, 4) int32, at the first of each group: sequences, where they begin in `members`, tokens; else 0
    splits,  # out (rows,) int32, cleared
    rows,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    number = tl.load(numbers + at, mask=at < rows, other=-1)
    mine = tl.load(numbers + row)
    alike = ((number == mine) & (number >= 0)).to(tl.int32)
    index = tl.sum(tl.where(at < row, alike, 0), 0)
    first = tl.sum(((number >= 0) & (number < mine)).to(tl.int32), 0)
    tl.store(members + first + index, row, mask=mine >= 0)
    leads = (mine >= 0) & (index == 0)
    tl.store(groups + row * 4, tl.where(leads, tl.sum(alike, 0), 0))
    tl.store(groups + row * 4 + 1, first)
    tl.store(groups + row * 4 + 2, tl.load(tokens + row))
    tl.store(splits + row, 0)


@triton.jit
def _list_items(
    members,  # (rows,) int32
    groups,  # (rows, 4) int32
    items,  # out (rows * SPLITS, 8) int32: first in `members`, sequences, first token, end, split, whose pages
    total,  # out (1,) int32, items in all
    splits,  # out (rows,) int32, into how many parts the beginning of each sequence is cut
    rows,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
    WANTED: tl.constexpr,
    BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    group = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    count = tl.load(groups + at * 4, mask=at < rows, other=0)
    tokens = tl.load(groups + at * 4 + 2, mask=at < rows, other=0)
    tiles = (count + ROWS - 1) // ROWS
    # As long as leaves every program its part, and as short as leaves nobody without.
    length = (tl.sum(tiles * tokens, 0) + WANTED - 1) // WANTED
    length = (tl.maximum((tokens + SPLITS - 1) // SPLITS, length) + TILE - 1) // TILE * TILE
    length = tl.maximum(length, TILE)
    cut = (tokens + length - 1) // length
    before = tl.sum(tl.where(at < group, tiles * cut, 0), 0)
    mine = at == group
    tiles = tl.sum(tl.where(mine, tiles, 0), 0)
    cut = tl.sum(tl.where(mine, cut, 0), 0)
    length = tl.sum(tl.where(mine, length, 0), 0)
    tokens = tl.sum(tl.where(mine, tokens, 0), 0)
    count = tl.sum(tl.where(mine, count, 0), 0)
    first = tl.load(groups + group * 4 + 1)
    some = tl.arange(0, AT_ONCE)
    for done in range(0, tiles * cut, AT_ONCE):
        index = done + some
        here = index < tiles * cut
        tile, split = index // tl.maximum(cut, 1), index % tl.maximum(cut, 1)
        item = items + (before + index) * 8
        tl.store(item, first + tile * ROWS, mask=here)
        tl.store(item + 1, tl.minimum(count - tile * ROWS, ROWS), mask=here)
        tl.store(item + 2, split * length, mask=here)
        tl.store(item + 3, tl.minimum(split * length + length, tokens), mask=here)
        tl.store(item + 4, split, mask=here)
        tl.store(item + 5, group + 0 * index, mask=here)
    for done in range(0, count, AT_ONCE):
        here = done + some < count
        row = tl.load(members + first + done + some, mask=here, other=0)
        tl.store(splits + row, tl.zeros_like(row) + cut, mask=here)
    tl.store(total, before + tiles * cut, mask=group == rows - 1)


@triton.jit
def _fetch(
    t, end, k_pool, v_pool, k_bulk, v_bulk, pages, head,
    KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
    FORMAT: tl.constexpr, CONVERTS: tl.constexpr,
):  # fmt: skip
    """Keys and values, (TILE, DP), of the tokens from t on; 0 from `end` on."""
    d, at = tl.arange(0, DP), t + tl.arange(0, TILE)
    if PAGE % TILE == 0:
        first = tl.load(pages + t // PAGE) * PAGE + t % PAGE
        slot = first.to(tl.int64) + tl.arange(0, TILE)
        kept = (d < D)[None, :]
    else:
        slot = tl.load(pages + at // PAGE, mask=at < end, other=0).to(tl.int64) * PAGE + at % PAGE
        kept = (at < end)[:, None] & (d < D)[None, :]
    if k_bulk is not None:
        keys, values = k_bulk.load([first, head * D]), v_bulk.load([first, head * D])
    else:
        where = (slot * KV_HEADS + head)[:, None] * D + d[None, :]
        keys, values = tl.load(k_pool + where, mask=kept, other=0.0), tl.load(v_pool + where, mask=kept, other=0.0)
    return widened(keys, FORMAT, CONVERTS), widened(values, FORMAT, CONVERTS)


# q (rows, HEADS, D): queries as `prepare` leaves them; pools [pages, PAGE, KV_HEADS, D]; table (rows, table_stride)
# int32; the rest as in `Beginnings` and `listing.Work`.
@triton.jit(do_not_specialize=["table_stride"])
def _attend_shared(
    q, k_pool, v_pool, k_bulk, v_bulk, table, table_stride, members, items, total, first_parts, partial, logs,
    scale, v_scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr,
    LINES: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr, CAP: tl.constexpr,
    WIDE: tl.constexpr, FORMAT: tl.constexpr, CONVERTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    begin(PDL)
    line = tl.arange(0, LINES)
    d = tl.arange(0, DP)
    for work in range(tl.program_id(0), tl.load(total) * KV_HEADS, tl.num_programs(0)):
        head = work % KV_HEADS
        item = items + work // KV_HEADS * 8
        first, count, start = tl.load(item), tl.load(item + 1), tl.load(item + 2)
        end, split = tl.load(item + 3), tl.load(item + 4)
        pages = table + tl.load(item + 5) * table_stride
        here = line // GROUP < count
        row = tl.load(members + first + line // GROUP, mask=here, other=0)
        mine = head * GROUP + line % GROUP
        there = here[:, None] & (d < D)[None, :]
        queries = tl.load(q + (row.to(tl.int64) * HEADS + mine)[:, None] * D + d[None, :], mask=there, other=0.0)
        queries = halved(queries, FORMAT)
        DOT: tl.constexpr = tl.float32 if WIDE else queries.dtype
        top = tl.full((LINES,), float("-inf"), tl.float32)
        weight = tl.zeros((LINES,), tl.float32)
        acc = tl.zeros((LINES, DP), tl.float32)
        for t in tl.range(start, end, TILE, num_stages=STAGES):
            keys, values = _fetch(
                t, end, k_pool, v_pool, k_bulk, v_bulk, pages, head, KV_HEADS, D, DP, PAGE, TILE, FORMAT, CONVERTS
            )
            scores = tl.dot(queries.to(DOT), tl.trans(keys.to(DOT)), input_precision="ieee")
            if CAP > 0.0:
                scores = bounded(scores * scale, CAP) * LOG2E
            else:
                scores *= scale * LOG2E
            if PAGE % TILE != 0:
                scores = tl.where((t + tl.arange(0, TILE) < end)[None, :], scores, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1))
            shrink = tl.exp2(top - new_top)
            p = tl.exp2(scores - new_top[:, None])
            weight = weight * shrink + tl.sum(p, 1)
            acc = tl.dot(p.to(queries.dtype).to(DOT), values.to(DOT), acc * shrink[:, None], input_precision="ieee")
            top = new_top
        part = (tl.load(first_parts + row, mask=here, other=0) + split).to(tl.int64) * HEADS + mine
        tl.store(partial + part[:, None] * D + d[None, :], acc / weight[:, None] * v_scale, mask=there)
        tl.store(logs + part, top + tl.log2(weight), mask=here)


@dataclass(frozen=True, slots=True)
class Beginnings:
    """What a step's sequences begin with alike, as work to be done. Every layer with pages of the same group shares it.

    Attributes:
        elsewhere: what each row gets from it.
        members, items, total: see the kernels.
        shape: how it was cut.
    """

    elsewhere: Elsewhere
    members: Tensor
    items: Tensor
    total: Tensor
    shape: Shape


def listed(shared: SharedInputs, spec: AttentionSpec, itemsize: int) -> Beginnings:
    """The work for the sequences of a step, whose values have `itemsize` bytes."""
    rows, device = len(shared.number), shared.number.device

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    shape = shape_of(rows * spec.heads // spec.kv_heads, _padded(spec.head_dim), itemsize)
    most, groups, block = most_splits(rows), empty(rows, 4), max(16, next_power_of_2(rows))
    members, splits, items, total = empty(rows), empty(rows), empty(rows * most, 8), empty(1)
    _list_members[(rows,)](shared.number, shared.tokens, members, groups, splits, rows, BLOCK=block, num_warps=1)
    _list_items[(rows,)](
        members, groups, items, total, splits, rows, ROWS=_lines(shape, spec) * spec.kv_heads // spec.heads,
        TILE=shape.tile, SPLITS=most, WANTED=max(1, _programs(shape, device) // spec.kv_heads), BLOCK=block,
        AT_ONCE=32, num_warps=1,
    )  # fmt: skip
    return Beginnings(Elsewhere(shared.tokens, splits, most), members, items, total, shape)


def attend_shared(
    found: Beginnings, work: Work, q: Tensor, pages: KVPages, step: StepInputs, spec: AttentionSpec
) -> None:
    """Attend to what sequences begin with alike: the first parts of each row in `work`. `q` as `prepare` leaves it."""
    (k_pool, v_pool, form), (k_scale, v_scale) = kept(pages), scales(pages)
    where, shape, device = step.groups[pages.group], found.shape, device_of(q.device)
    bulk = bulk_of(pages, shape.tile) if shape.bulk else (None, None)
    _attend_shared[(min(_programs(shape, q.device), len(found.items) * spec.kv_heads),)](
        q, k_pool, v_pool, *bulk, where.page_table, where.page_table.stride(0), found.members, found.items,
        found.total, work.first_parts, work.partial, work.logs, spec.scale * k_scale, v_scale, HEADS=spec.heads,
        KV_HEADS=spec.kv_heads,
        D=spec.head_dim, DP=_padded(spec.head_dim), GROUP=spec.heads // spec.kv_heads, LINES=_lines(shape, spec),
        PAGE=pages.k.shape[1], TILE=shape.tile, STAGES=device.stages(shape.stages), CAP=spec.soft_cap or 0.0,
        WIDE=INTERPRETED, **form, num_warps=shape.warps, **device.options,
    )  # fmt: skip


def _padded(dim: int) -> int:
    return max(16, next_power_of_2(dim))


def _lines(shape: Shape, spec: AttentionSpec) -> int:
    """Query rows of a program: those of one sequence at least."""
    return max(shape.lines, next_power_of_2(spec.heads // spec.kv_heads))


def _programs(shape: Shape, device: torch.device) -> int:
    return shape.resident * device_of(device).processors
