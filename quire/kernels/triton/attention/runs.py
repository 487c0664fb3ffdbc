"""The kernels that attend for one token of each row in large batches, a program a run of splits.

Tiles of a run are read in one stream, after `heads` has done what comes before, and parts of rows are left to a kernel
of their own (`merge_rows`). Products are turned around: the 16 lines that matrix units take at least are tokens and
values of a head, and queries, of which a KV head has few, are the columns, of which 8 are enough. Called by `decode`.
"""

import triton
import triton.language as tl

from quire.kernels.triton.attention.listing import FIELDS, FIRST, LAST, entry_of, find
from quire.kernels.triton.attention.narrow import halved, pairs_widened, widened
from quire.kernels.triton.attention.shared import LOG2E, bounded
from quire.kernels.triton.attention.splits import fetch, leave, merge
from quire.kernels.triton.launch import release, wait

# The highest score of nothing: lower than any, and yet it can be subtracted, which -inf cannot.
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def _nothing(TILE: tl.constexpr, DP: tl.constexpr, COLUMNS: tl.constexpr, FORMAT: tl.constexpr):
    """Sums over no tokens. Weights are added up over tokens at the end alone."""
    if FORMAT == 0:
        acc, odd = tl.zeros((DP, COLUMNS), tl.float32), 0
    else:
        acc, odd = tl.zeros((DP // 2, COLUMNS), tl.float32), tl.zeros((DP // 2, COLUMNS), tl.float32)
    return acc, odd, tl.full((COLUMNS,), LOWEST, tl.float32), tl.zeros((TILE, COLUMNS), tl.float32)


@triton.jit
def _add(
    acc, odd, top, weight, queries, keys, values, seen, scale,
    CAP: tl.constexpr, FORMAT: tl.constexpr, CONVERTS: tl.constexpr,
):  # fmt: skip
    """Attend to one tile."""
    DOT: tl.constexpr = queries.dtype
    scores = tl.dot(widened(keys, FORMAT, CONVERTS).to(DOT), queries, input_precision="ieee")
    factor = scale * LOG2E
    if CAP > 0.0:
        scores = bounded(scores * scale, CAP)
        factor = LOG2E
    scores = tl.where(seen[:, None], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 0) * factor)
    shrink = tl.exp2(top - new_top)[None, :]
    p = tl.exp2(scores * factor - new_top[None, :])
    weight = weight * shrink + p
    p = p.to(DOT)
    if FORMAT == 0:
        acc = tl.dot(values.to(DOT), p, acc * shrink, input_precision="ieee")
    else:
        first, second = pairs_widened(values, FORMAT, CONVERTS)
        acc = tl.dot(first.to(DOT), p, acc * shrink, input_precision="ieee")
        odd = tl.dot(second.to(DOT), p, odd * shrink, input_precision="ieee")
    return acc, odd, new_top, weight


@triton.jit
def run_of_splits(
    q, out, k_pool, v_pool, v_pairs, sinks, splits, runs, tiles, places, partial, logs, scale, v_scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr,
    COLUMNS: tl.constexpr, TILE: tl.constexpr, PIECES: tl.constexpr, STAGES: tl.constexpr, CAP: tl.constexpr,
    WIDE: tl.constexpr, BEGINS: tl.constexpr, FORMAT: tl.constexpr, CONVERTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A run of splits, for queries q (rows, HEADS, D) as `prepare` leaves them, which has written the new tokens, too.

    All heads' programs of a run read the same tokens at the same time. `scale` is above 0.
    """
    release(PDL)
    head = tl.program_id(0) % KV_HEADS
    run = runs + tl.program_id(0) // KV_HEADS * 2
    begin, end, split = tl.load(run), tl.load(run + 2), tl.load(run + 1) - 1
    wait(PDL)
    d, g = tl.arange(0, DP)[:, None], tl.minimum(tl.arange(0, COLUMNS), GROUP - 1)
    queries = halved(tl.zeros((DP, COLUMNS), q.dtype.element_ty), FORMAT)
    queries = queries.to(tl.float32 if WIDE else queries.dtype)
    acc, odd, top, weight = _nothing(TILE, DP, COLUMNS, FORMAT)
    for t in tl.range(begin, end, num_stages=STAGES):
        marks, place = find(t, tiles, places, TILE, PIECES)
        keys, values, seen = fetch(
            marks, place, k_pool, v_pool, v_pairs, head, KV_HEADS, D, DP, TILE, PIECES, BEGINS, True
        )  # fmt: skip
        if marks & FIRST:
            split += 1
            row, _, ends, _, _ = entry_of(splits, split)
            column = q + (row.to(tl.int64) * HEADS + head * GROUP + g)[None, :] * D
            queries = halved(tl.load(column + d, mask=d < D, other=0.0), FORMAT).to(queries.dtype)
            acc, odd, top, weight = _nothing(TILE, DP, COLUMNS, FORMAT)
            if sinks is not None:
                # A row's last split takes the sinks in.
                sink = tl.load(sinks + head * GROUP + g).to(tl.float32) * LOG2E
                top = tl.where(ends, tl.where(sink == float("-inf"), LOWEST, sink), top)
                weight += tl.where(ends & (tl.arange(0, TILE) == 0), 1.0, 0.0)[:, None]
        acc, odd, top, weight = _add(
            acc, odd, top, weight, queries, keys, values, seen, scale, CAP, FORMAT, CONVERTS
        )  # fmt: skip
        if marks & LAST:
            row, _, _, parts, part = entry_of(splits, split)
            if FORMAT == 0:
                lines = tl.trans(acc)
            else:
                lines = tl.permute(tl.join(acc, odd), (1, 0, 2)).reshape((COLUMNS, DP))
            leave(
                lines, top, tl.sum(weight, 0), out, partial, logs, row, parts, part, head, v_scale,
                HEADS, D, DP, GROUP, COLUMNS,
            )  # fmt: skip


@triton.jit
def merge_rows(
    out, splits, firsts, partial, logs,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr,
    GROUP_P: tl.constexpr, AT_ONCE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The rows that `firsts` names, one a program and KV head."""
    release(PDL)
    first_split, head = tl.load(firsts + tl.program_id(0)), tl.program_id(1)
    entry = splits + tl.maximum(first_split, 0) * FIELDS
    row, first = tl.load(entry), tl.load(entry + 4)
    count = tl.where(first_split < 0, 0, tl.load(entry + 3))
    wait(PDL)
    if count > 1:
        merge(partial, logs, out, row, first, count, head, HEADS, D, DP, GROUP, GROUP_P, AT_ONCE)
