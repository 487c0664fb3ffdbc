"""The list of what a decode step's attention reads, made on the device once per step and shared by all layers.

The tokens that a row has in pages are counted in tiles. A row is cut into splits of whole tiles whose borders depend on
its own length and on the size of the batch, never on what its batch mates hold. Called by `decode`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.ops.attention import AttentionSpec
from quire.ops.step import GroupInputs

FIELDS = tl.constexpr(16)
"""Of a split: row, first tile, tiles, parts of its row, the first of them, length of the row, whether it ends there,
which part it is, and what `Work.tiles` and `Work.places` say of its first tile, for those who need that soon."""

FIRST, LAST = tl.constexpr(1 << 16), tl.constexpr(1 << 17)
"""Of a tile: it is a split's first, or last. The 16 bits below say from where to where in it tokens are seen."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How rows are cut.

    Attributes:
        tile: tokens read at once.
        chunk: tiles of a split, unless the row has more than `splits` of that.
        even: splits that a row should have at least, if it has the tiles.
        splits: most of one row, a power of two; bounds the memory for what is left to be merged.
        runs: runs of splits, alike in tiles, that the whole list is divided into; 0 if nobody asks for runs.
    """

    tile: int
    chunk: int
    even: int
    splits: int
    runs: int


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What rows need not read themselves.

    Attributes:
        tokens: (rows,) int32, tokens at the start of each.
        parts: (rows,) int32, in how many parts it gets the result for them.
        most: of these parts.
    """

    tokens: Tensor
    parts: Tensor
    most: int


@dataclass(frozen=True, slots=True)
class Work:
    """What all layers of a step share.

    Attributes:
        splits: (most splits, FIELDS) int32.
        total: (1,) int32, splits in all.
        firsts: (rows,) int32, each row's first split.
        first_parts: (rows,) int32, each row's first part: those of what it shares come before those of its splits.
        tiles: (most tiles,) int32, what is seen of each, and FIRST and LAST.
        places: (most tiles, pieces) int32, where in the pools each piece of a tile begins.
        runs: (runs + 1, 2) int32, the first tile and the first split of each; then the end.
        arrived: (rows, kv_heads) int32, how many splits of a row are done; 0 between kernels.
        partial: (most parts, heads, head_dim) float32, the result of each.
        logs: (most parts, heads) float32, the binary logarithm of the sum of its weights.
    """

    splits: Tensor
    total: Tensor
    firsts: Tensor
    first_parts: Tensor
    tiles: Tensor
    places: Tensor
    runs: Tensor
    arrived: Tensor
    partial: Tensor
    logs: Tensor


@triton.jit
def _cut(length, begin, TILE: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr, SPLITS: tl.constexpr):
    """Of rows of these lengths, read from token `begin` on: first tile, tiles, splits and tiles of all but the last."""
    low = begin // TILE
    tiles = tl.maximum((length - 1 + TILE - 1) // TILE - low, 1)
    count = tl.minimum(tl.minimum(tl.maximum((tiles + CHUNK - 1) // CHUNK, EVEN), SPLITS), tiles)
    width = (tiles + count - 1) // count
    return low, tiles, (tiles + width - 1) // width, width


@triton.jit
def _seen(token, begin, length, TILE: tl.constexpr):
    """From where to where tokens are seen in the tiles that begin at `token`, of those from `begin` on: 2 x 8 bits."""
    return tl.maximum(begin - token, 0) | tl.minimum(tl.maximum(length - 1 - token, 0), TILE) << 8


@triton.jit
def _store_runs(runs, split, start, tiles, before, here, all_tiles, last, RUNS: tl.constexpr, RUNS_P: tl.constexpr):
    """The runs that begin with splits (n,) of `tiles` tiles from `start` on; the one before the first has `before`."""
    # A split belongs to the run that its middle lies in.
    mine = (2 * start + tiles) * RUNS // (2 * all_tiles)
    previous = tl.where(start > 0, (2 * start - before) * RUNS // (2 * all_tiles), -1)
    run = tl.arange(0, RUNS_P)[None, :]
    begins = (run > previous[:, None]) & (run <= mine[:, None]) & here[:, None]
    tl.store(runs + 2 * run + 0 * start[:, None], start[:, None] + 0 * run, mask=begins)
    tl.store(runs + 2 * run + 1 + 0 * start[:, None], split[:, None] + 0 * run, mask=begins)
    ends = (run > mine[:, None]) & (run <= RUNS) & last[:, None]
    tl.store(runs + 2 * run + 0 * start[:, None], all_tiles + 0 * run + 0 * start[:, None], mask=ends)


@triton.jit
def _store_tiles(
    marks, places, table, low, tiles, width, begin, length,
    TILE: tl.constexpr, PAGE: tl.constexpr, PIECE: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """What is seen of a row's tiles, where its splits begin and end, and where its pages, at `table`, lie."""
    pieces = tl.arange(0, TILE // PIECE)
    for some in range(0, tiles, AT_ONCE):
        tile = some + tl.arange(0, AT_ONCE)
        token = (low + tile) * TILE
        seen = _seen(token, begin, length, TILE)
        ends = (tile % width == width - 1) | (tile == tiles - 1)
        seen |= tl.where(tile % width == 0, FIRST, 0) | tl.where(ends, LAST, 0)
        tl.store(marks + tile, seen, mask=tile < tiles)
        token = token[:, None] + pieces[None, :] * PIECE
        kept = (tile < tiles)[:, None] & (token < length - 1)
        pages = tl.load(table + token // PAGE, mask=kept, other=0)
        where = tile[:, None] * (TILE // PIECE) + pieces[None, :]
        tl.store(places + where, pages * PAGE + token % PAGE, mask=(tile < tiles)[:, None])


@triton.jit(do_not_specialize=["rows", "table_stride"])
def _list(
    lengths, shared, other_parts, table, table_stride, splits, total, firsts, first_parts, tiles_out, places, runs,
    rows,
    WINDOW: tl.constexpr, SHARED: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr,
    SPLITS: tl.constexpr, RUNS: tl.constexpr, RUNS_P: tl.constexpr, PAGE: tl.constexpr, PIECE: tl.constexpr,
    BLOCK: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    length = tl.load(lengths + at, mask=at < rows, other=0)
    begin = tl.maximum(length - WINDOW, 0) if WINDOW else 0 * length
    others = 0 * length
    if SHARED:
        begin = tl.load(shared + at, mask=at < rows, other=0)
        others = tl.load(other_parts + at, mask=at < rows, other=0)
    low, tiles, count, width = _cut(length, begin, TILE, CHUNK, EVEN, SPLITS)
    tiles, count = tl.where(at < rows, tiles, 0), tl.where(at < rows, count, 0)
    all_tiles = tl.sum(tiles, 0)
    first_split = tl.sum(tl.where(at < row, count, 0), 0)
    first_tile = tl.sum(tl.where(at < row, tiles, 0), 0)
    first_part = first_split + tl.sum(tl.where(at < row, others, 0), 0)
    others = tl.sum(tl.where(at == row, others, 0), 0)
    # How many tiles the split before this row's first has.
    before = tl.sum(tl.where(at == row - 1, tiles - (count - 1) * width, 0), 0)
    length = tl.sum(tl.where(at == row, length, 0), 0)
    begin = tl.sum(tl.where(at == row, begin, 0), 0)
    low, tiles, count, width = _cut(length, begin, TILE, CHUNK, EVEN, SPLITS)
    split = tl.arange(0, SPLITS)
    here = split < count
    start = first_tile + split * width
    own = tl.minimum(width, tiles - split * width)
    entry = splits + (first_split + split) * FIELDS
    tl.store(entry, row + 0 * split, mask=here)
    tl.store(entry + 1, start, mask=here)
    tl.store(entry + 2, own, mask=here)
    tl.store(entry + 3, others + count + 0 * split, mask=here)
    tl.store(entry + 4, first_part + 0 * split, mask=here)
    tl.store(entry + 5, length + 0 * split, mask=here)
    tl.store(entry + 6, (split == count - 1).to(tl.int32), mask=here)
    tl.store(entry + 7, first_part + others + split, mask=here)
    opening = (low + split * width) * TILE
    tl.store(entry + 8, _seen(opening, begin, length, TILE), mask=here)
    table += row.to(tl.int64) * table_stride
    page = tl.load(table + opening // PAGE, mask=here & (opening < length - 1), other=0)
    tl.store(entry + 9, page * PAGE + opening % PAGE, mask=here)
    tl.store(firsts + row, first_split)
    tl.store(first_parts + row, first_part)
    tl.store(total, first_split + count, mask=row == rows - 1)
    if RUNS:
        before = tl.where(split == 0, before, width)
        last = (split == count - 1) & (row == rows - 1)
        _store_runs(runs, first_split + split, start, own, before, here, all_tiles, last, RUNS, RUNS_P)
    _store_tiles(
        tiles_out + first_tile, places + first_tile * (TILE // PIECE), table, low, tiles, width, begin, length,
        TILE, PAGE, PIECE, AT_ONCE,
    )  # fmt: skip


def make(lengths: Tensor, where: GroupInputs, cut: Cut, spec: AttentionSpec, elsewhere: Elsewhere | None) -> Work:
    """The list for rows of `lengths` (rows,) int32 with pages as `where` says.

    Args:
        elsewhere: what is left out.

    Kernels launched after this one may read the list, and all that had been written before it, without waiting: the
    memory of `arrived` is cleared by a launch of the old kind, which begins when the list is complete.
    """
    rows, device, table, page_size = len(lengths), lengths.device, where.page_table, where.page_size

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    piece = 1
    while piece < cut.tile and page_size % (2 * piece) == 0:
        piece *= 2
    parts = rows * (cut.splits + (elsewhere.most if elsewhere else 0))
    tiles = rows * (triton.cdiv(table.shape[1] * page_size, cut.tile) + 1)
    work = Work(
        splits=empty(rows * cut.splits, FIELDS.value),
        total=empty(1),
        firsts=empty(rows),
        first_parts=empty(rows),
        tiles=empty(tiles),
        places=empty(tiles, cut.tile // piece),
        runs=empty(cut.runs + 1, 2),
        arrived=empty(rows, spec.kv_heads),
        partial=empty(parts, spec.heads, spec.head_dim, dtype=torch.float32),
        logs=empty(parts, spec.heads, dtype=torch.float32),
    )
    others = (None, None) if elsewhere is None else (elsewhere.tokens, elsewhere.parts)
    _list[(rows,)](
        lengths, *others, table, table.stride(0), work.splits, work.total, work.firsts, work.first_parts, work.tiles,
        work.places, work.runs, rows, WINDOW=spec.window or 0, SHARED=elsewhere is not None, TILE=cut.tile,
        CHUNK=cut.chunk, EVEN=cut.even, SPLITS=cut.splits, RUNS=cut.runs,
        RUNS_P=triton.next_power_of_2(cut.runs + 1), PAGE=page_size, PIECE=piece,
        BLOCK=max(16, triton.next_power_of_2(rows)), AT_ONCE=max(16, 256 * piece // cut.tile), num_warps=4,
    )  # fmt: skip
    work.arrived.zero_()
    return work
