"""The list of what a decode step's attention reads, made on the device once per step and shared by all layers.

The tokens that a row has in pages are counted in tiles, and rows are cut into splits of whole tiles: for small batches
by their own length alone, for large ones so that all programs get as many tiles. Called by `decode`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.attention.shared import first_seen
from quire.kernels.triton.launch import cdiv, next_power_of_2
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
        splits: of each row that has the tiles, a power of two; where there are no runs.
        runs: programs for each KV head, which get as many tiles each; 0 where each program takes one split.

    Runs read every token of a row in its pages; a program with one split knows the newest before it is there.
    """

    tile: int
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
        firsts: (n,) int32, the first split of each row that has parts to be merged, -1 in between.
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
def entry_of(splits, split):
    """Of a split: row, length of the row, whether it ends there, parts of the row, and which of them it is."""
    entry = splits + split * FIELDS
    return tl.load(entry), tl.load(entry + 5), tl.load(entry + 6) != 0, tl.load(entry + 3), tl.load(entry + 7)


@triton.jit
def find(t, tiles, places, TILE: tl.constexpr, PIECES: tl.constexpr):
    """The marks of tile `t`, and where each of its pieces begins: one number, or one for each token."""
    if PIECES == 1:
        place = tl.load(places + t)
    else:
        place = tl.load(places + t * PIECES + tl.arange(0, TILE) // (TILE // PIECES))
    return tl.load(tiles + t), place


@triton.jit
def _tiles(kept, begin, TILE: tl.constexpr):
    """Of rows that have so many tokens in pages, read from token `begin` on: first tile, and tiles."""
    low = begin // TILE
    return low, tl.maximum((kept + TILE - 1) // TILE - low, 1)


@triton.jit
def _width(tiles, SPLITS: tl.constexpr):
    """Tiles of all splits but the last, of rows that are cut by their own length."""
    count = tl.minimum(SPLITS, tl.maximum(tiles, 1))
    return (tiles + count - 1) // count


@triton.jit
def _run_from(tile, tiles, runs):
    """The first of `runs` that begins at `tile` or later; run r begins at tile r * tiles // runs."""
    return (tile * runs + tiles - 1) // tiles


@triton.jit
def _bounds(split, count, first_tile, tiles, all_tiles, SPLITS: tl.constexpr, RUNS: tl.constexpr):
    """The first tile of each of a row's `count` splits, and the one behind its last."""
    if RUNS:
        used = tl.minimum(RUNS, all_tiles)
        border = _run_from(first_tile + 1, all_tiles, used) + split
        start = tl.where(split == 0, first_tile, (border - 1) * all_tiles // used)
        end = tl.where(split == count - 1, first_tile + tiles, border * all_tiles // used)
    else:
        width = _width(tiles, SPLITS)
        start = first_tile + split * width
        end = tl.minimum(start + width, first_tile + tiles)
    return start, end


@triton.jit
def _seen(token, begin, kept, TILE: tl.constexpr):
    """From where to where tokens are seen in the tiles that begin at `token`, of those from `begin` on: 2 x 8 bits."""
    return tl.maximum(begin - token, 0) | tl.minimum(tl.maximum(kept - token, 0), TILE) << 8


@triton.jit
def _store_splits(entry, split, row, start, end, others, count, first_part, length):
    """What `FIELDS` says of a row's splits, but for what their first tiles hold."""
    here = split < count
    tl.store(entry, row + 0 * split, mask=here)
    tl.store(entry + 1, start, mask=here)
    tl.store(entry + 2, end - start, mask=here)
    tl.store(entry + 3, others + count + 0 * split, mask=here)
    tl.store(entry + 4, first_part + 0 * split, mask=here)
    tl.store(entry + 5, length + 0 * split, mask=here)
    tl.store(entry + 6, (split == count - 1).to(tl.int32), mask=here)
    tl.store(entry + 7, first_part + others + split, mask=here)


@triton.jit
def _store_runs(
    runs, firsts, split, start, end, all_tiles, count, is_last, MERGES: tl.constexpr, RUNS: tl.constexpr,
    RUNS_P: tl.constexpr,
):  # fmt: skip
    """The runs that begin in a row whose tiles are `start` to `end` and whose first split is `split`.

    `firsts` gets the row at the first run that cuts it, unless all rows are merged (`MERGES`).
    """
    used = tl.minimum(RUNS, all_tiles)
    first, cuts = _run_from(start, all_tiles, used), _run_from(start + 1, all_tiles, used)
    run = tl.arange(0, RUNS_P)
    begins = (run >= first) & (run < _run_from(end, all_tiles, used))
    beyond = is_last & (run >= used)
    stored = begins | beyond & (run <= RUNS)
    tl.store(runs + 2 * run, tl.where(beyond, all_tiles, run * all_tiles // used), mask=stored)
    tl.store(runs + 2 * run + 1, tl.where(beyond, 0, split + run - cuts + 1), mask=stored)
    if not MERGES:
        cut = (run == cuts) & (count > 1) & begins
        tl.store(firsts + run, tl.where(cut, split, -1), mask=begins | beyond & (run < RUNS))


@triton.jit
def _store_tiles(
    marks, places, table, low, tiles, begin, kept, start, all_tiles,
    RUNS: tl.constexpr, TILE: tl.constexpr, PAGE: tl.constexpr, PIECE: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """What is seen of a row's tiles, where its splits begin and end, and where its pages, at `table`, lie."""
    pieces = tl.arange(0, TILE // PIECE)
    marks += start
    places += start * (TILE // PIECE)
    for some in range(0, tiles, AT_ONCE):
        tile = some + tl.arange(0, AT_ONCE)
        token = (low + tile) * TILE
        seen = _seen(token, begin, kept, TILE)
        if RUNS:
            used = tl.minimum(RUNS, all_tiles)
            at, after = _run_from(start + tile, all_tiles, used), _run_from(start + tile + 1, all_tiles, used)
            seen |= tl.where((tile == 0) | (after > at), FIRST, 0)
            later = _run_from(start + tile + 2, all_tiles, used)
            seen |= tl.where((tile == tiles - 1) | (later > after), LAST, 0)
        tl.store(marks + tile, seen, mask=tile < tiles)
        token = token[:, None] + pieces[None, :] * PIECE
        pages = tl.load(table + token // PAGE, mask=(tile < tiles)[:, None] & (token < kept), other=0)
        where = tile[:, None] * (TILE // PIECE) + pieces[None, :]
        tl.store(places + where, pages * PAGE + token % PAGE, mask=(tile < tiles)[:, None])


@triton.jit(do_not_specialize=["rows", "table_stride"])
def _list(
    lengths, shared, other_parts, table, table_stride, splits, total, firsts, first_parts, tiles_out, places, runs,
    rows,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SHARED: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    RUNS: tl.constexpr, PAGE: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    length = tl.load(lengths + at, mask=at < rows, other=0)
    begin = tl.maximum(first_seen(tl.maximum(length - 1, 0), WINDOW, CHUNK), 0)
    others = 0 * length
    if SHARED:
        begin = tl.load(shared + at, mask=at < rows, other=0)
        others = tl.load(other_parts + at, mask=at < rows, other=0)
    # What runs read has all been written.
    newest: tl.constexpr = 0 if RUNS else 1
    low, tiles = _tiles(length - newest, begin, TILE)
    tiles = tl.where(at < rows, tiles, 0)
    ends, all_tiles = tl.cumsum(tiles, 0), tl.sum(tiles, 0)
    if RUNS:
        used = tl.minimum(RUNS, all_tiles)
        count = 1 + _run_from(ends, all_tiles, used) - _run_from(ends - tiles + 1, all_tiles, used)
    else:
        count = (tiles + _width(tiles, SPLITS) - 1) // tl.maximum(_width(tiles, SPLITS), 1)
    count = tl.where(at < rows, count, 0)
    first_split = tl.sum(tl.where(at < row, count, 0), 0)
    first_part = first_split + tl.sum(tl.where(at < row, others, 0), 0)
    first_tile = tl.sum(tl.where(at < row, tiles, 0), 0)
    mine = at == row
    others, count = tl.sum(tl.where(mine, others, 0), 0), tl.sum(tl.where(mine, count, 0), 0)
    length, begin = tl.sum(tl.where(mine, length, 0), 0), tl.sum(tl.where(mine, begin, 0), 0)
    kept = length - newest
    low, tiles = _tiles(kept, begin, TILE)
    split = tl.arange(0, SPLITS)
    here = split < count
    start, end = _bounds(split, count, first_tile, tiles, all_tiles, SPLITS, RUNS)
    entry = splits + (first_split + split) * FIELDS
    _store_splits(entry, split, row, start, end, others, count, first_part, length)
    opening = (low + start - first_tile) * TILE
    tl.store(entry + 8, _seen(opening, begin, kept, TILE), mask=here)
    table += row.to(tl.int64) * table_stride
    page = tl.load(table + opening // PAGE, mask=here & (opening < kept), other=0)
    tl.store(entry + 9, page * PAGE + opening % PAGE, mask=here)
    tl.store(first_parts + row, first_part)
    tl.store(total, first_split + count, mask=row == rows - 1)
    if SHARED:
        tl.store(firsts + row, first_split)
    if RUNS:
        _store_runs(
            runs, firsts, first_split, first_tile, first_tile + tiles, all_tiles, count, row == rows - 1, SHARED, RUNS,
            SPLITS,
        )  # fmt: skip
    _store_tiles(
        tiles_out, places, table, low, tiles, begin, kept, first_tile, all_tiles, RUNS, TILE, PAGE, PIECE, AT_ONCE
    )


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
    # A border between runs cuts one row at most.
    most = rows + cut.runs if cut.runs else rows * cut.splits
    parts = most + rows * (elsewhere.most if elsewhere else 0)
    tiles = rows * (cdiv(table.shape[1] * page_size, cut.tile) + 1)
    work = Work(
        splits=empty(most, FIELDS.value),
        total=empty(1),
        firsts=empty(rows if elsewhere else cut.runs),
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
        work.places, work.runs, rows, WINDOW=spec.window or 0, CHUNK=spec.chunk or 0, SHARED=elsewhere is not None,
        TILE=cut.tile, SPLITS=next_power_of_2(cut.runs + 1) if cut.runs else cut.splits, RUNS=cut.runs,
        PAGE=page_size, PIECE=piece,
        BLOCK=max(16, next_power_of_2(rows)), AT_ONCE=max(16, 256 * piece // cut.tile), num_warps=4,
    )  # fmt: skip
    work.arrived.zero_()
    return work
