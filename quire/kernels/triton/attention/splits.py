"""The kernel that attends for one token of each row in small batches, a program a split, and what `runs` has of it.

A program norms, rotates and writes the new token itself, and has its keys on their way before it waits for the kernel
before it; whoever ends a row's last split merges them. Called by `decode`.
"""

import triton
import triton.language as tl

from quire.kernels.triton.attention.listing import FIELDS, entry_of, find
from quire.kernels.triton.attention.narrow import halved, narrowed, pairs_widened, widened
from quire.kernels.triton.attention.shared import LOG2E, bounded, partner
from quire.kernels.triton.launch import release, wait


@triton.jit
def _read(pool, start, slot, seen, D: tl.constexpr, DP: tl.constexpr, SIDEWAYS: tl.constexpr):
    """A tile of a pool, (TILE, DP), or `SIDEWAYS`, (DP, TILE); 0 where tokens are not seen."""
    d = tl.arange(0, DP)
    if SIDEWAYS:
        where, kept = slot[None, :] * D + d[:, None], seen[None, :] & (d < D)[:, None]
    else:
        where, kept = slot[:, None] * D + d[None, :], seen[:, None] & (d < D)[None, :]
    return tl.load(pool + start * D + where, mask=kept, other=0)


@triton.jit
def fetch(
    marks, place, k_pool, v_pool, v_pairs, head, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    TILE: tl.constexpr, PIECES: tl.constexpr, BEGINS: tl.constexpr, SIDEWAYS: tl.constexpr,
):  # fmt: skip
    """Keys (TILE, DP) and values (TILE, DP), or `SIDEWAYS`, (DP, TILE), of a tile, and which of its tokens are seen.

    Values of 8 bits come in pairs, DP / 2: products want two tokens side by side, and the instruction that brings them
    there moves 16 bits.
    """
    i = tl.arange(0, TILE)
    if PIECES == 1:
        # What is added to the pools is one number, and the places within a tile are the same in every turn.
        start, slot = place.to(tl.int64) * KV_HEADS + head, i * KV_HEADS
    else:
        start, slot = head.to(tl.int64), (place.to(tl.int64) + i % (TILE // PIECES)) * KV_HEADS
    seen = i < (marks >> 8 & 255)
    if BEGINS:
        seen &= i >= (marks & 255)
    keys = _read(k_pool, start, slot, seen, D, DP, False)
    if v_pairs is None:
        values = _read(v_pool, start, slot, seen, D, DP, SIDEWAYS)
    else:
        values = _read(v_pairs, start, slot, seen, D // 2, DP // 2, SIDEWAYS)
    return keys, values, seen


@triton.jit
def _turns(angles, norm, length, D: tl.constexpr, DP: tl.constexpr, ROTARY: tl.constexpr, NORM: tl.constexpr):
    """What the heads of a row are multiplied with, and their partners: two (DP,) float32."""
    d = tl.arange(0, DP)
    half: tl.constexpr = ROTARY // 2
    angle = angles + tl.maximum(length - 1, 0).to(tl.int64) * ROTARY
    cos = tl.load(angle + d % half, mask=d < ROTARY, other=1.0)
    sin = tl.load(angle + half + d % half, mask=d < ROTARY, other=0.0)
    sin = tl.where(d < half, -sin, sin)
    if NORM:
        cos *= tl.load(norm + d, mask=d < D, other=0.0).to(tl.float32)
        sin *= tl.load(norm + partner(d, ROTARY, DP), mask=d < D, other=0.0).to(tl.float32)
    return cos, sin


@triton.jit
def _turned(x, y, turns, eps, D: tl.constexpr, NORM: tl.constexpr):
    """Heads `x` (n, DP), whose partners are `y`, normed and rotated: float32."""
    cos, sin = turns
    x, y = x.to(tl.float32), y.to(tl.float32)
    turned = x * cos[None, :] + y * sin[None, :]
    if NORM:
        turned *= tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
    return turned


@triton.jit
def _start(
    qkv, row, head, length, newest, slot, q_turns, k_turns, k_pool, v_pool, sinks, scale, k_inverse, v_inverse, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, CAP: tl.constexpr, NORM: tl.constexpr, ROTARY: tl.constexpr, FORMAT: tl.constexpr,
    CONVERTS: tl.constexpr,
):  # fmt: skip
    """Begin a split: its queries (ROWS, DP), and sums over nothing or, in the row's last split, over its new token and
    the heads' sinks.

    The new key and value go to their page and, from registers, into the sums: nobody reads that slot in this step.
    """
    d, g = tl.arange(0, DP)[None, :], tl.arange(0, ROWS)
    other = partner(d, ROTARY, DP)
    base = qkv + row.to(tl.int64) * (HEADS + 2 * KV_HEADS) * D
    q = base + (head * GROUP + tl.minimum(g, GROUP - 1))[:, None] * D
    # The same in every line, so that they lie like the queries.
    k = base + (HEADS + head + 0 * g)[:, None] * D
    inside, new = (d < D) & (g >= 0)[:, None], (d < D) & newest & (g >= 0)[:, None]
    q_x, q_y = tl.load(q + d, mask=inside, other=0.0), tl.load(q + other, mask=inside, other=0.0)
    k_x, k_y = tl.load(k + d, mask=new, other=0.0), tl.load(k + other, mask=new, other=0.0)
    value = tl.load(k + KV_HEADS * D + d, mask=new, other=0.0)
    queries = halved(_turned(q_x, q_y, q_turns, eps, D, NORM).to(qkv.dtype.element_ty), FORMAT)
    key = _turned(k_x, k_y, k_turns, eps, D, NORM).to(qkv.dtype.element_ty)
    key = narrowed(key.to(tl.float32), k_inverse, k_pool, FORMAT, CONVERTS)
    value = narrowed(value.to(tl.float32), v_inverse, v_pool, FORMAT, CONVERTS)
    at = (slot * KV_HEADS + head) * D + d + 0 * g[:, None]
    tl.store(k_pool + at, key, mask=new & (g == 0)[:, None])
    tl.store(v_pool + at, value, mask=new & (g == 0)[:, None])
    score = tl.sum(queries.to(tl.float32) * widened(key, FORMAT, CONVERTS).to(tl.float32), 1) * scale
    if CAP > 0.0:
        score = bounded(score, CAP)
    counts = newest & (length > 0)
    top = tl.where(counts, score * LOG2E, float("-inf"))
    weight = tl.where(counts, 1.0, 0.0 * score)
    acc = tl.where(counts, widened(value, FORMAT, CONVERTS).to(tl.float32), 0.0)
    if sinks is not None:
        sink = tl.load(sinks + head * GROUP + tl.minimum(g, GROUP - 1)).to(tl.float32) * LOG2E
        highest = tl.maximum(score * LOG2E, sink)
        share = tl.exp2(score * LOG2E - highest)
        top = tl.where(counts, highest, top)
        weight = tl.where(counts, share + tl.exp2(sink - highest), weight)
        acc *= share[:, None]
    if FORMAT == 0:
        odd = 0
    else:
        acc, odd = tl.split(acc.reshape((ROWS, DP // 2, 2)))
    return queries, acc, odd, top, weight


@triton.jit
def _add(
    acc, odd, top, weight, queries, keys, values, seen, scale,
    CAP: tl.constexpr, WIDE: tl.constexpr, FORMAT: tl.constexpr, CONVERTS: tl.constexpr,
):  # fmt: skip
    """Attend to one tile."""
    DOT: tl.constexpr = tl.float32 if WIDE else queries.dtype
    keys = widened(keys, FORMAT, CONVERTS)
    scores = tl.dot(queries.to(DOT), tl.trans(keys.to(DOT)), input_precision="ieee")
    if CAP > 0.0:
        scores = bounded(scores * scale, CAP) * LOG2E
    else:
        scores *= scale * LOG2E
    scores = tl.where(seen[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    # From -inf, where nothing has been seen yet, nothing may be subtracted.
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    shrink = tl.exp2(top - base)
    p = tl.exp2(scores - base[:, None])
    weight = weight * shrink + tl.sum(p, 1)
    p = p.to(queries.dtype).to(DOT)
    if FORMAT == 0:
        acc = tl.dot(p, values.to(DOT), acc * shrink[:, None], input_precision="ieee")
    else:
        first, second = pairs_widened(values, FORMAT, CONVERTS)
        acc = tl.dot(p, first.to(DOT), acc * shrink[:, None], input_precision="ieee")
        odd = tl.dot(p, second.to(DOT), odd * shrink[:, None], input_precision="ieee")
    return acc, odd, new_top, weight


@triton.jit
def merge(
    partial, logs, out, row, first, count, head, HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    GROUP: tl.constexpr, GROUP_P: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Add up a row's parts, in order, for the query heads of one KV head."""
    d, g = tl.arange(0, DP)[None, :], tl.arange(0, GROUP_P)
    heads = head * GROUP + g
    mine = (g < GROUP)[:, None] & (d < D)
    top = tl.full((GROUP_P,), float("-inf"), tl.float32)
    weight = tl.zeros((GROUP_P,), tl.float32)
    acc = tl.zeros((GROUP_P, DP), tl.float32)
    for done in range(0, count, AT_ONCE):
        # All on their way before the first is used.
        found = ()
        found_logs = ()
        for i in tl.static_range(AT_ONCE):
            there = done + i < count
            part = (first + done + i).to(tl.int64) * HEADS + heads
            log = tl.load(logs + part, mask=(g < GROUP) & there, other=float("-inf"), cache_modifier=".cg")
            value = tl.load(partial + part[:, None] * D + d, mask=mine & there, other=0.0, cache_modifier=".cg")
            found = found + (value,)
            found_logs = found_logs + (log,)
        new_top = top
        for i in tl.static_range(AT_ONCE):
            new_top = tl.maximum(new_top, found_logs[i])
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        acc *= tl.exp2(top - base)[:, None]
        weight *= tl.exp2(top - base)
        for i in tl.static_range(AT_ONCE):
            w = tl.exp2(found_logs[i] - base)
            acc += found[i] * w[:, None]
            weight += w
        top = new_top
    result = acc / tl.where(weight > 0, weight, 1.0)[:, None]
    tl.store(out + (row.to(tl.int64) * HEADS + heads)[:, None] * D + d, result, mask=mine)


@triton.jit
def leave(
    acc, top, weight, out, partial, logs, row, parts, part, head, v_scale,
    HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Store a split's sums, (ROWS, DP): as the row's, if it has no other `parts`, else as number `part`."""
    d, g = tl.arange(0, DP)[None, :], tl.arange(0, ROWS)
    heads = head * GROUP + g
    mine = (g < GROUP)[:, None] & (d < D)
    weight = tl.where(weight > 0, weight, 1.0)
    result = acc / weight[:, None] * v_scale
    if parts == 1:
        tl.store(out + (row.to(tl.int64) * HEADS + heads)[:, None] * D + d, result, mask=mine)
    else:
        at = part.to(tl.int64) * HEADS + heads
        tl.store(partial + at[:, None] * D + d, result, mask=mine)
        tl.store(logs + at, top + tl.log2(weight), mask=g < GROUP)


# Arguments of `early`: qkv (rows, HEADS + 2 * KV_HEADS, D), queries, keys, values; out (rows, HEADS, D); pools
# [slots, KV_HEADS, D]; new_slots (rows,) int64; angles (positions, ROTARY) float32; the rest as in `listing.Work`.
@triton.jit
def early(
    qkv, out, k_pool, v_pool, v_pairs, new_slots, angles, q_norm, k_norm, sinks,
    splits, total, tiles, places, arrived, partial, logs, scale, v_scale, k_inverse, v_inverse, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr,
    GROUP_P: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PIECES: tl.constexpr, STAGES: tl.constexpr,
    AT_ONCE: tl.constexpr, CAP: tl.constexpr, NORM: tl.constexpr, ROTARY: tl.constexpr, WIDE: tl.constexpr,
    BEGINS: tl.constexpr, FORMAT: tl.constexpr, CONVERTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One split. All that is read before the wait was there before the list, which was there before the step's first
    attention: lengths, page tables, the tokens of earlier steps."""
    release(PDL)
    head, split = tl.program_id(0) % KV_HEADS, tl.program_id(0) // KV_HEADS
    # Entries beyond the last hold anything.
    entry = splits + split * FIELDS
    row, length, newest, parts, part = entry_of(splits, split)
    tile, count, first, marks = tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 4), tl.load(entry + 8)
    there = split < tl.load(total)
    row, length, marks = tl.where(there, row, 0), tl.where(there, length, 0), tl.where(there, marks, 0)
    if PIECES == 1:
        place = tl.load(entry + 9)
    else:
        pieces = places + tl.where(there, tile, 0) * PIECES
        place = tl.load(pieces + tl.arange(0, TILE) // (TILE // PIECES))
    keys, values, seen = fetch(
        marks, place, k_pool, v_pool, v_pairs, head, KV_HEADS, D, DP, TILE, PIECES, BEGINS, False
    )  # fmt: skip
    slot = tl.load(new_slots + row)
    q_turns = _turns(angles, q_norm, length, D, DP, ROTARY, NORM)
    k_turns = _turns(angles, k_norm, length, D, DP, ROTARY, NORM)
    wait(PDL)
    if there:
        queries, acc, odd, top, weight = _start(
            qkv, row, head, length, newest, slot, q_turns, k_turns, k_pool, v_pool, sinks, scale,
            k_inverse, v_inverse, eps, HEADS, KV_HEADS, D, DP, GROUP, ROWS, CAP, NORM, ROTARY, FORMAT, CONVERTS,
        )  # fmt: skip
        acc, odd, top, weight = _add(
            acc, odd, top, weight, queries, keys, values, seen, scale, CAP, WIDE, FORMAT, CONVERTS
        )
        for t in tl.range(tile + 1, tile + count, num_stages=STAGES):
            marks, place = find(t, tiles, places, TILE, PIECES)
            keys, values, seen = fetch(
                marks, place, k_pool, v_pool, v_pairs, head, KV_HEADS, D, DP, TILE, PIECES, BEGINS, False
            )  # fmt: skip
            acc, odd, top, weight = _add(
                acc, odd, top, weight, queries, keys, values, seen, scale, CAP, WIDE, FORMAT, CONVERTS
            )
        if FORMAT != 0:
            acc = tl.join(acc, odd).reshape((ROWS, DP))
        leave(acc, top, weight, out, partial, logs, row, parts, part, head, v_scale, HEADS, D, DP, GROUP, ROWS)
        if parts > 1:
            # Every thread's stores before the count, and the count before the loads of whoever comes last.
            tl.debug_barrier()
            arrived += row * KV_HEADS + head
            if tl.atomic_add(arrived, 1, sem="acq_rel") == parts - 1:
                merge(partial, logs, out, row, first, parts, head, HEADS, D, DP, GROUP, GROUP_P, AT_ONCE)
                tl.store(arrived, 0)
