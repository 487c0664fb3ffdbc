"""One random token per row without sorting: three passes over the logits, and a short list of doubtful tokens.

`_scan` finds each row's maximum. `_tally` counts its tokens, or adds their masses, by bins of the scaled logit, and
draws for rows that take all tokens. `_pivot` finds the bin in which top_k or top_p cuts. `_collect` draws among the
tokens before that bin and lists those within it. `_finish` finds the exact cut in the list and draws there; the best of
all draws wins, as noise belongs to the token. Each kernel asks the tables what its row needs, so that any mixture of
rows, greedy ones among them, takes the same launches and no host.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import cdiv, next_power_of_2
from quire.kernels.triton.step.noise import log_exponential, row_key
from quire.kernels.triton.step.places import (
    BINS,
    NOWHERE,
    bin_of,
    extent,
    id_at,
    last_kept,
    listed_places,
    logit_at,
    mass_of,
    place_of,
    remain,
    scaled,
    share,
    weigh,
)
from quire.ops.draw import LOG_MIN_P, SEED, TEMPERATURE, TOP_K, TOP_P, Group, Kind, RowTable, draw_tokens
from quire.ops.registry import provide

ROOM = 8192
"""Tokens that a row's list holds. For rows with more doubtful ones each step of the search reads all logits again."""

TILE = 1024
"""Listed tokens looked at together."""

PART, WARPS = 2048, 4
"""Tokens that one block looks at, and its warps."""

NUMBERS, INTEGERS = tl.constexpr(6), tl.constexpr(2)
"""Columns of the tables."""

_TEMPERATURE, _TOP_P, _LOG_MIN_P = tl.constexpr(TEMPERATURE), tl.constexpr(TOP_P), tl.constexpr(LOG_MIN_P)
_TOP_K, _SEED = tl.constexpr(TOP_K), tl.constexpr(SEED)


@triton.jit
def settings_of(row, numbers, integers):
    """Temperature, top_p, log_min_p and top_k of a row."""
    temperature = tl.load(numbers + row * NUMBERS + _TEMPERATURE)
    top_p = tl.load(numbers + row * NUMBERS + _TOP_P)
    log_min_p = tl.load(numbers + row * NUMBERS + _LOG_MIN_P)
    return temperature, top_p, log_min_p, tl.load(integers + row * INTEGERS + _TOP_K)


@triton.jit
def key_of(row, integers, known):
    """The key of a row's noise."""
    return row_key(tl.load(integers + row * INTEGERS + _SEED), tl.load(known + row))


@triton.jit
def tops_of(tops, line, parts, WIDTH: tl.constexpr):
    """Maxima of the parts of a row, and of the row; an infinity where it cannot be drawn from."""
    at = tl.arange(0, WIDTH)
    found = tl.load(tops + line * parts + at, mask=at < parts, other=-float("inf"))
    return found, tl.max(found, 0)


@triton.jit
def floor_of(found, top_k, WIDTH: tl.constexpr):
    """A logit that top_k tokens reach at least: the one of that rank among the maxima of the parts, -inf if too few."""
    place = tl.arange(0, WIDTH)
    return tl.max(tl.where(place == top_k - 1, tl.sort(found, descending=True), -float("inf")), 0)


@triton.jit
def tail_of(found, top, temperature, log_min_p, top_p, vocab):
    """A scaled logit such that tokens below it hold less than 1 - top_p of the row, as the maxima alone show."""
    s = scaled(found, top, temperature)
    least = tl.sum(tl.where(remain(s, log_min_p), tl.exp(s), 0.0), 0)
    return tl.log(tl.maximum((1.0 - top_p) * least * 0.5 / vocab, 1e-30))


@triton.jit
def best_of(value, ids, NONE: tl.constexpr):
    """The largest value and the lowest of the ids that have it; NONE is an id above all."""
    best = tl.max(value, 0)
    return best, tl.min(tl.where(value == best, ids, NONE), 0)


@triton.jit
def _scan(
    logits,  # (rows, vocab)
    tops,  # out (rows, parts) float32; inf if the part holds NaN
    firsts,  # out (rows, parts) int32, the first token that has it
    counts,  # out (rows, BINS) int32, zeros
    masses,  # out (rows, BINS) int64, zeros
    listed,  # out (rows,) int32, zeros
    vocab,
    PART: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    at = part * PART + tl.arange(0, PART)
    x = tl.load(logits + line * vocab + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
    x = tl.where(x != x, float("inf"), x)
    top, first = best_of(x, at, 0x7FFFFFFF)
    entry = line * tl.num_programs(1) + part
    tl.store(tops + entry, top)
    tl.store(firsts + entry, first)
    if part == 0:
        bins = line * BINS + tl.arange(0, BINS)
        tl.store(counts + bins, tl.zeros([BINS], tl.int32))
        tl.store(masses + bins, tl.zeros([BINS], tl.int64))
        tl.store(listed + line, 0)


@triton.jit(do_not_specialize=["parts"])
def _tally(
    logits,
    rows,  # (n,) int64
    known,  # (max_rows,) int32
    numbers,  # (max_rows, NUMBERS) float32
    integers,  # (max_rows, INTEGERS) int64
    tops,
    best,  # out (rows, parts) float32, for rows that take all tokens: the best noisy logit
    best_ids,  # out (rows, parts) int32
    counts,  # (rows, BINS) int32, added to
    masses,  # (rows, BINS) int64, added to
    vocab,
    parts,
    PART: tl.constexpr,
    WIDTH: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = tl.load(rows + line)
    temperature, top_p, log_min_p, top_k = settings_of(row, numbers, integers)
    found, top = tops_of(tops, line, parts, WIDTH)
    if (temperature > 0) & (tl.abs(top) < float("inf")):
        at = part * PART + tl.arange(0, PART)
        x = tl.load(logits + line * vocab + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
        s = scaled(x, top, temperature)
        left = remain(s, log_min_p)
        if (top_k >= vocab) & (top_p >= 1):
            noisy = s - log_exponential(key_of(row, integers, known), at)
            value, token = best_of(tl.where(left, noisy, -float("inf")), at, 0x7FFFFFFF)
            tl.store(best + line * parts + part, value)
            tl.store(best_ids + line * parts + part, token)
        else:
            bins = bin_of(s)
            # What is surely dropped is left out: adding to memory one by one is slow.
            if top_k < vocab:
                counted = left & (x >= floor_of(found, top_k, WIDTH))
                tl.atomic_add(counts + line * BINS + bins, 1, mask=counted, sem="relaxed")
            else:
                mass = tl.where(left, mass_of(s), 0)
                high = s >= tail_of(found, top, temperature, log_min_p, top_p, vocab)
                tl.atomic_add(masses + line * BINS + bins, mass, mask=high & (mass > 0), sem="relaxed")
                rest = tl.sum(tl.where(high, 0, mass), 0)
                tl.atomic_add(masses + line * BINS + BINS - 1, rest, mask=rest > 0, sem="relaxed")


@triton.jit
def _pivot(
    rows,
    numbers,
    integers,
    counts,
    masses,
    cuts,  # out (rows, 4) int64: first and last bin of the list, what is before it, and what is wanted in all
    vocab,
):
    line = tl.program_id(0).to(tl.int64)
    _, top_p, _, top_k = settings_of(tl.load(rows + line), numbers, integers)
    bins = tl.arange(0, BINS)
    if top_k < vocab:
        found = tl.load(counts + line * BINS + bins).to(tl.int64)
        wanted = top_k
    else:
        found = tl.load(masses + line * BINS + bins)
        wanted = share(top_p, tl.sum(found, 0))
    high = tl.sum((tl.cumsum(found, 0) < wanted).to(tl.int64), 0)
    before = tl.sum(tl.where(bins < high, found, 0), 0)
    # With both, top_p refers to the mass of what top_k leaves, which the list must hold completely.
    both = (top_k < vocab) & (top_p < 1)
    tl.store(cuts + line * 4, tl.where(both, 0, high))
    tl.store(cuts + line * 4 + 1, high)
    tl.store(cuts + line * 4 + 2, tl.where(both, 0, before))
    tl.store(cuts + line * 4 + 3, wanted)


@triton.jit(do_not_specialize=["parts"])
def _collect(
    logits,
    rows,
    known,
    numbers,
    integers,
    tops,
    best,  # out
    best_ids,  # out
    cuts,
    listed,  # (rows,) int32, added to
    entries,  # out (rows, ROOM) int64, in no order
    vocab,
    parts,
    PART: tl.constexpr,
    WIDTH: tl.constexpr,
    ROOM: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = tl.load(rows + line)
    temperature, top_p, log_min_p, top_k = settings_of(row, numbers, integers)
    _, top = tops_of(tops, line, parts, WIDTH)
    cut = (top_k < vocab) | (top_p < 1)
    if (temperature > 0) & cut & (tl.abs(top) < float("inf")):
        low, high = tl.load(cuts + line * 4), tl.load(cuts + line * 4 + 1)
        value = -float("inf")
        token = vocab
        own = tl.load(tops + line * parts + part)
        if bin_of(scaled(own, top, temperature)) <= high:  # a part of which nothing is kept is not read again
            at = part * PART + tl.arange(0, PART)
            x = tl.load(logits + line * vocab + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
            s = scaled(x, top, temperature)
            left = remain(s, log_min_p)
            bins = bin_of(s)
            sure = left & (bins < low)
            if tl.max(sure.to(tl.int32), 0) > 0:
                noisy = s - log_exponential(key_of(row, integers, known), at)
                value, token = best_of(tl.where(sure, noisy, -float("inf")), at, 0x7FFFFFFF)
            doubtful = (left & (bins >= low) & (bins <= high)).to(tl.int32)
            count = tl.sum(doubtful, 0)
            if count > 0:
                spot = tl.atomic_add(listed + line, count, sem="relaxed") + tl.cumsum(doubtful, 0) - 1
                tl.store(entries + line * ROOM + spot, place_of(x, at), mask=(doubtful > 0) & (spot < ROOM))
        tl.store(best + line * parts + part, value)
        tl.store(best_ids + line * parts + part, token)


@triton.jit(do_not_specialize=["count", "parts"])
def _finish(
    logits,
    rows,
    known,
    numbers,
    integers,
    tops,
    firsts,
    best,
    best_ids,
    cuts,
    listed,
    entries,
    drawn,  # out (2, rows) int64
    count,
    vocab,
    parts,
    WIDTH: tl.constexpr,
    ROOM: tl.constexpr,
    TILE: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + line)
    temperature, top_p, log_min_p, top_k = settings_of(row, numbers, integers)
    at = tl.arange(0, WIDTH)
    found = tl.load(tops + line * parts + at, mask=at < parts, other=-float("inf"))
    top, token = best_of(found, tl.load(firsts + line * parts + at, mask=at < parts, other=vocab), 0x7FFFFFFF)
    fine = tl.abs(top) < float("inf")
    if fine & (temperature > 0):
        found = tl.load(best + line * parts + at, mask=at < parts, other=-float("inf"))
        value, token = best_of(found, tl.load(best_ids + line * parts + at, mask=at < parts, other=vocab), 0x7FFFFFFF)
        if (top_k < vocab) | (top_p < 1):
            size = tl.load(listed + line)
            there = (entries + line * ROOM, size, ROOM, logits + line * vocab, vocab, top, temperature, log_min_p)
            cut = _cut(there, cuts + line * 4, top_p, top_k, TILE)
            other, other_id = _draw_listed(there, cuts + line * 4, cut, key_of(row, integers, known), TILE)
            better = (other > value) | ((other == value) & (other_id < token))
            token = tl.where(better, other_id, token)
    tl.store(drawn + line, tl.where(fine, token, 0).to(tl.int64))
    tl.store(drawn + count + line, (~fine).to(tl.int64))


@triton.jit
def _cut(row, cuts, top_p, top_k, TILE: tl.constexpr):
    """The last place that is kept among those listed: what top_k leaves first, then what top_p leaves of it."""
    low, high = tl.load(cuts), tl.load(cuts + 1)
    base, wanted = tl.load(cuts + 2), tl.load(cuts + 3)
    last = base * 0 + (NOWHERE - 1)
    for by_mass in range(2):
        if tl.where(by_mass == 0, top_k < row[4], top_p < 1):
            if (by_mass == 1) & (top_k < row[4]):
                mass, _, _ = weigh(row, low, high, last + 1, by_mass, TILE)
                wanted = share(top_p, mass)
            last = last_kept(row, low, high, last, base, wanted, by_mass, TILE)
    return last


@triton.jit
def _draw_listed(row, cuts, cut, key, TILE: tl.constexpr):
    """The best noisy logit among the listed tokens up to the place `cut`, and its token."""
    value = -float("inf")
    token = row[4]
    low, high = tl.load(cuts), tl.load(cuts + 1)
    for start in range(0, extent(row), TILE):
        place = listed_places(row, start + tl.arange(0, TILE), low, high)
        ids = id_at(place)
        noisy = scaled(logit_at(place), row[5], row[6]) - log_exponential(key, ids)
        kept = (place <= cut) & (place != NOWHERE)
        found, first = best_of(tl.where(kept, noisy, -float("inf")), ids, 0x7FFFFFFF)
        token = tl.where((found > value) | ((found == value) & (first < token)), first, token)
        value = tl.maximum(value, found)
    return value, token


class _Space(NamedTuple):
    """What the kernels hand on to each other, by the names of their arguments."""

    tops: Tensor
    firsts: Tensor
    best: Tensor
    best_ids: Tensor
    counts: Tensor
    masses: Tensor
    cuts: Tensor
    listed: Tensor
    entries: Tensor


def _space(count: int, parts: int, device: torch.device) -> _Space:
    def empty(width: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(count, width, dtype=dtype, device=device)

    return _Space(
        tops=empty(parts, torch.float32),
        firsts=empty(parts, torch.int32),
        best=empty(parts, torch.float32),
        best_ids=empty(parts, torch.int32),
        counts=empty(BINS.value, torch.int32),
        masses=empty(BINS.value, torch.int64),
        cuts=empty(4, torch.int64),
        listed=empty(1, torch.int32),
        entries=empty(ROOM, torch.int64),
    )


@provide("triton", draw_tokens, batch_invariant=True)
def triton_draw_tokens(
    logits: Tensor, rows: Tensor, known: Tensor, table: RowTable, groups: tuple[Group, ...] | None = None
) -> Tensor:
    """See `draw_tokens`. Without a sort, and with `groups` only to leave out what no row needs."""
    logits = logits.contiguous()
    count, vocab = logits.shape
    parts = cdiv(vocab, PART)
    s = _space(count, parts, logits.device)
    drawn = torch.empty(2, count, dtype=torch.int64, device=logits.device)
    grid, shape = (count, parts), {"PART": PART, "num_warps": WARPS}
    row = (rows, known, table.numbers, table.integers)
    width = next_power_of_2(parts)
    _scan[grid](logits, s.tops, s.firsts, s.counts, s.masses, s.listed, vocab, **shape)
    _tally[grid](logits, *row, s.tops, s.best, s.best_ids, s.counts, s.masses, vocab, parts, WIDTH=width, **shape)
    if groups is None or any(group.kind is not Kind.PLAIN for group in groups):
        _pivot[(count,)](rows, table.numbers, table.integers, s.counts, s.masses, s.cuts, vocab, num_warps=4)
        lists = (s.tops, s.best, s.best_ids, s.cuts, s.listed, s.entries)
        _collect[grid](logits, *row, *lists, vocab, parts, WIDTH=width, ROOM=ROOM, **shape)
    found = (s.tops, s.firsts, s.best, s.best_ids, s.cuts, s.listed, s.entries)
    sizes = {"WIDTH": width, "ROOM": ROOM, "TILE": TILE, "num_warps": 4}
    _finish[(count,)](logits, *row, *found, drawn, count, vocab, parts, **sizes)
    return drawn
