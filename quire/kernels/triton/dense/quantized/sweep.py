"""What a block adds up over the inputs, for weights of 4 or 8 bits that become values on their way to the matrix units.

Words of weights come to shared memory ahead of time and become values in registers, from where the matrix units take
them; activations keep their dtype. Scales that belong to 128 inputs or more are applied to sums, finer ones to values.
Shared by products of a few rows and by those of experts.
"""

import triton
import triton.language as tl

from quire.kernels.triton.dense.quantized.decode import eights, fours, lift, scale


@triton.jit
def _dot(w, x, sums, WIDEN: tl.constexpr):
    """sums + w @ x.T; the interpreter cannot multiply bfloat16."""
    if WIDEN:
        w, x = w.to(tl.float32), x.to(tl.float32)
    return tl.dot(w, tl.trans(x), sums, input_precision="ieee" if x.dtype == tl.float32 else None)


@triton.jit
def _values(x, m, k, inside, K: tl.constexpr, EVEN: tl.constexpr):
    """Inputs `k` of rows `m`."""
    mask = inside[:, None] if EVEN else inside[:, None] & (k < K)[None, :]
    return tl.load(x + m[:, None] * K + k[None, :], mask=mask, other=0.0)


@triton.jit
def _tile(words, n, first, at, end, ROW: tl.constexpr, EVEN: tl.constexpr):
    """Words from `first` on of rows `n`."""
    where = words + n[:, None] * ROW + (first + at)[None, :]
    if EVEN:
        found = tl.load(where)
    else:
        found = tl.load(where, mask=(first + at < end)[None, :], other=0)
    return found


@triton.jit
def _ahead(scales, zeros, n, k, K: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
           ROW_BLOCK: tl.constexpr, SCALE: tl.constexpr, ZEROS: tl.constexpr, BITS: tl.constexpr):  # fmt: skip
    """What is fetched of the scales of inputs from `k` on, for each row `n`.

    Of coarse groups the scale and zero point; of fine ones whose scales are bytes those of a run, four in an integer.
    """
    first = 0
    second = 0
    if GROUP >= 128:
        group = tl.minimum(k, K - 1) // GROUP
        first = tl.load(scales + n // ROW_BLOCK * GROUPS + group)
        if ZEROS:
            second = tl.load(zeros + n * GROUPS + group)
    elif GROUP > 0 and bytewise(SCALE, GROUP, BITS, ZEROS):
        COUNT: tl.constexpr = 512 // BITS // GROUP
        at = scales + n // ROW_BLOCK * GROUPS + tl.minimum(k, WIDTH - 512 // BITS) // GROUP
        if COUNT == 2:
            first = tl.load(at.to(tl.pointer_type(tl.int16))).to(tl.int32)
        else:
            first = tl.load(at.to(tl.pointer_type(tl.int32)))
        if COUNT == 8:
            second = tl.load(at.to(tl.pointer_type(tl.int32)) + 1)
    return first, second


@triton.constexpr_function
def row_words(inputs, bits):
    """Words of 16 bits of a row, in whole runs."""
    return (inputs * bits + 511) // 512 * 32


@triton.constexpr_function
def bytewise(scale, group, bits, zeros):
    """Whether the scales of a run are 2, 4 or 8 bytes."""
    return scale in ("float8_e4m3fn", "e8m0") and 512 // bits // group in (2, 4, 8) and not zeros


@triton.jit
def _byte(stored, INDEX: tl.constexpr, SCALE: tl.constexpr, LIFT: tl.constexpr):
    """A scale of a run as bfloat16, times LIFT; scales of 8 bits are neither negative nor NaN."""
    bits = stored[0] if INDEX < 4 else stored[1]
    # Where float32 has the end of its exponent, and the beginning of its fraction.
    UP: tl.constexpr = (23 if SCALE == "e8m0" else 20) - 8 * (INDEX % 4)
    moved = bits << UP if UP >= 0 else bits >> -UP
    if SCALE == "e8m0":
        value = (moved & 0x7F800000).to(tl.float32, bitcast=True)
    else:
        value = (moved & 0x07F00000).to(tl.float32, bitcast=True) * 2.0**120
    return value.to(tl.bfloat16) * LIFT


@triton.jit
def _times_bytes(w, now, PART: tl.constexpr, LIFT: tl.constexpr, GROUP: tl.constexpr, SCALE: tl.constexpr):
    """Values `w` (outputs, 32) of the words' PART-th part times their scales: exact, since both are short floats."""
    if GROUP == 16:
        low, high = _byte(now, 2 * PART, SCALE, LIFT), _byte(now, 2 * PART + 1, SCALE, LIFT)
        # (outputs, 2, 16), the second dimension the two groups.
        both = tl.broadcast_to(tl.join(low, high)[:, :, None], [w.shape[0], 2, 16])
        factor = tl.reshape(both, [w.shape[0], 32])
    else:
        factor = _byte(now, PART * 32 // GROUP, SCALE, LIFT)[:, None]
    return w * factor


@triton.jit
def _times(
    w, scales, zeros, n, k, LIFT: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ROW_BLOCK: tl.constexpr, SCALE: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """Values `w` (outputs, 32) of inputs from `k` on, less their zero points and times their scales."""
    COUNT: tl.constexpr = 2 if GROUP == 16 else 1
    group = tl.minimum(k // GROUP + tl.arange(0, COUNT), GROUPS - 1)[None, :]
    factor = scale(tl.load(scales + (n // ROW_BLOCK)[:, None] * GROUPS + group), SCALE) * LIFT
    parts = tl.reshape(w.to(tl.float32), [w.shape[0], COUNT, 32 // COUNT])
    if ZEROS:
        parts -= tl.load(zeros + n[:, None] * GROUPS + group)[:, :, None].to(tl.float32)
    return tl.reshape(parts * factor[:, :, None], [w.shape[0], 32])


@triton.jit
def _added(
    found, inputs, scales, zeros, n, k, sums, now,
    KIND: tl.constexpr, SCALE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ROW_BLOCK: tl.constexpr, ZEROS: tl.constexpr, WIDEN: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Sums with those of a tile of words whose first input is `k`; `now` is what was fetched of their scales.

    `inputs` are the activations of the words' parts, each (rows, words).
    """
    TO: tl.constexpr = inputs[0].dtype
    LIFT: tl.constexpr = lift(KIND, TO, NATIVE)
    if BITS == 8:
        parts = eights(found, KIND, tl.float32 if WIDEN else TO, NATIVE)
    else:
        parts = fours(found, KIND, tl.float32 if WIDEN else TO, NATIVE)
    fresh = tl.zeros_like(sums) if GROUP >= 128 else sums
    for i in tl.static_range(16 // BITS):
        part = parts[i]
        if GROUP >= 128:
            if ZEROS:
                part -= now[1][:, None].to(part.dtype)
        elif GROUP > 0:
            if bytewise(SCALE, GROUP, BITS, ZEROS) and NATIVE and TO.is_bf16():
                part = _times_bytes(part, now, i, LIFT, GROUP, SCALE)
            else:
                part = _times(part, scales, zeros, n, k + 32 * i, LIFT, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS)
        fresh = _dot(part.to(TO), inputs[i], fresh, WIDEN)
    if GROUP >= 128:
        fresh = sums + fresh * scale(now[0], SCALE)[:, None]
    return fresh


@triton.jit
def swept(
    x, m, inside, words, scales, zeros, n, up, begin, end,
    K: tl.constexpr, TWO: tl.constexpr, KIND: tl.constexpr, SCALE: tl.constexpr, BITS: tl.constexpr,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, ROW_BLOCK: tl.constexpr, ZEROS: tl.constexpr,
    DEPTH: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr, WIDEN: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Rows `n` of weights, and with TWO rows `up`, times rows `m` of x, over words `begin` to `end` of a row.

    Returns: both sums, (outputs, rows) float32. EVEN says that DEPTH words at a time end where the words and K do.
    """
    PER: tl.constexpr = 16 // BITS
    ROW: tl.constexpr = row_words(K, BITS)
    WIDTH: tl.constexpr = ROW * PER
    at = tl.arange(0, DEPTH)
    sums = tl.zeros((n.shape[0], m.shape[0]), tl.float32)
    ups = tl.zeros((n.shape[0], m.shape[0]), tl.float32)
    ahead = _ahead(scales, zeros, n, begin * PER, K, WIDTH, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS, BITS)
    up_ahead = ahead
    if TWO:
        up_ahead = _ahead(scales, zeros, up, begin * PER, K, WIDTH, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS, BITS)
    for first in tl.range(begin, end, DEPTH, num_stages=STAGES):
        k = first * PER
        now, up_now = ahead, up_ahead
        # Fetched a step ahead: nothing else hides how long it takes.
        after = k + DEPTH * PER
        ahead = _ahead(scales, zeros, n, after, K, WIDTH, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS, BITS)
        near = k + (at // 32) * (32 * PER) + at % 32
        inputs = ()
        for i in tl.static_range(PER):
            inputs = inputs + (_values(x, m, near + 32 * i, inside, K, EVEN),)
        found = _tile(words, n, first, at, end, ROW, EVEN)
        sums = _added(
            found, inputs, scales, zeros, n, k, sums, now,
            KIND, SCALE, BITS, GROUP, GROUPS, ROW_BLOCK, ZEROS, WIDEN, NATIVE,
        )  # fmt: skip
        if TWO:
            up_ahead = _ahead(scales, zeros, up, after, K, WIDTH, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS, BITS)
            found = _tile(words, up, first, at, end, ROW, EVEN)
            ups = _added(
                found, inputs, scales, zeros, up, k, ups, up_now,
                KIND, SCALE, BITS, GROUP, GROUPS, ROW_BLOCK, ZEROS, WIDEN, NATIVE,
            )  # fmt: skip
    return sums, ups
