"""Order and weight of tokens within a kernel, and the search for the last one that is kept.

A token's place is an int64, smaller for a more probable token: its logit upside down in the high 32 bits, its id in the
low ones. No two tokens have the same, so every cut is exact. Masses are integers, as in `quire.ops.topk`: the order in
which they are added does not matter.
"""

import triton
import triton.language as tl

BINS = tl.constexpr(1024)
"""Of a histogram over scaled logits."""

BINS_PER_UNIT = tl.constexpr(32.0)

NOWHERE = tl.constexpr(2**63 - 1)
"""No token's place: behind all of them."""


@triton.jit
def place_of(x, ids):
    """Places of tokens `ids`, int32, with logits x, float32 without NaN."""
    # Adding 0 turns -0.0 into 0.0. Flipping the bits of negative floats makes the integer order the float order.
    raw = (x + 0.0).to(tl.int32, bitcast=True)
    raw = raw ^ ((raw >> 31) & 0x7FFFFFFF)
    return ((~raw).to(tl.int64) << 32) | ids.to(tl.int64)


@triton.jit
def logit_at(place):
    """The logit of the token at a place."""
    raw = ~((place >> 32).to(tl.int32))
    return (raw ^ ((raw >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def id_at(place):
    """The id of the token at a place, int32."""
    return (place & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def scaled(x, top, temperature):
    """Logits over temperature with the maximum at 0, rounded as torch rounds them."""
    return tl.div_rn(x - top, temperature)


@triton.jit
def remain(s, log_min_p):
    """Whether tokens with scaled logits s are possible, and probable enough for min_p."""
    return (s > -float("inf")) & (s >= log_min_p)


@triton.jit
def bin_of(s):
    """Bins of scaled logits, int32: any rule will do that never puts a more probable token into a later bin."""
    return tl.minimum(s * -BINS_PER_UNIT, BINS - 1.0).to(tl.int32)


@triton.jit
def mass_of(s):
    """Probability relative to the most probable token in units of 2**-40, int64."""
    return (tl.exp(s) * 1099511627776.0).to(tl.int64)


@triton.jit
def share(top_p, total):
    """The least mass that is `top_p` of `total`, int64, at least 1."""
    return tl.maximum(tl.ceil(top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64), 1)


@triton.jit
def listed_places(row, at, low, high):
    """Places of the tokens `at` of a row's list, int32 offsets; NOWHERE behind its end.

    A list that was too short for its tokens is left unread: all tokens of the row are looked at instead, and those
    outside the bins low to high are NOWHERE.

    Args:
        row: (list, tokens in it, room, logits, vocab, top, temperature, log_min_p).
    """
    entries, count, room, logits, vocab, top, temperature, log_min_p = row
    if count <= room:
        place = tl.load(entries + at, mask=at < count, other=NOWHERE)
    else:
        x = tl.load(logits + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
        s = scaled(x, top, temperature)
        bins = bin_of(s)
        inside = remain(s, log_min_p) & (bins >= low) & (bins <= high)
        place = tl.where(inside, place_of(x, at), NOWHERE)
    return place


@triton.jit
def extent(row):
    """How many offsets the list of a row has."""
    return tl.where(row[1] <= row[2], row[1], row[4])


@triton.jit
def weigh(row, low, high, mid, by_mass, TILE: tl.constexpr):
    """Of the tokens listed: how much is before place `mid`, the first place from there on, the last one before it.

    Args:
        by_mass: 1 adds masses, 0 counts tokens.
    """
    before = mid * 0
    over = before + NOWHERE
    under = before - NOWHERE
    for start in range(0, extent(row), TILE):
        place = listed_places(row, start + tl.arange(0, TILE), low, high)
        mass = mass_of(tl.where(place < mid, scaled(logit_at(place), row[5], row[6]), -float("inf")))
        before += tl.sum(tl.where(by_mass == 1, mass, (place < mid).to(tl.int64)), 0)
        over = tl.minimum(over, tl.min(tl.where(place >= mid, place, NOWHERE), 0))
        under = tl.maximum(under, tl.max(tl.where(place < mid, place, -NOWHERE), 0))
    return before, over, under


@triton.jit
def last_kept(row, low, high, last, base, wanted, by_mass, TILE: tl.constexpr):
    """The last listed place up to `last` with less than `wanted` before it, where `base` is before the list.

    Bisection whose ends are moved to places of tokens, so that it ends after about the logarithm of their number.
    """
    first = last * 0 - NOWHERE
    while first < last:
        mid = (first | last) - ((first ^ last) >> 1)  # the mean, rounded up, without overflow
        before, over, under = weigh(row, low, high, mid, by_mass, TILE)
        if base + before < wanted:
            first = tl.minimum(over, last)  # all that is listed is kept where nothing is over
        else:
            last = under
    return first
