"""Products of 4-bit integers with activations in whole numbers: two at a time, where there is an instruction for it.

The activations of a unit (the 32 inputs of eight words) become integers of 15 bits that share a power of two, so those
of bfloat16 keep all of their bits down to a 64th of the largest. Zero points, and what codes are raised by, meet the
sum of the unit. Nothing is rounded until the sums of a unit become float32.
"""

import triton
import triton.language as tl

NIBBLES, ONES = tl.constexpr(0x0F0F0F0F), tl.constexpr(0x01010101)
# Added to a float32 below 2 ** 22, its value is in the lowest bits as a whole number.
_WHOLE = tl.constexpr(12582912.0)
# The exponent that the largest activation of a unit gets; the same between two exponents with their bias.
_MOST, _BOTH = tl.constexpr(13), tl.constexpr(13 + 2 * 127)
_LOW, _HIGH = (tl.constexpr(f"dp2a.{half}.s32.u32 $0, $1, $2, $3;") for half in ("lo", "hi"))


@triton.constexpr_function
def raised(kind):
    """What codes of `kind` stand above their values by."""
    return 8 if kind == "uint4b8" else 0


@triton.jit
def _two_products(sums, pair, codes, HIGH: tl.constexpr, NATIVE: tl.constexpr):
    """`sums` with the products of two signed halves of `pair` and the lower or HIGH two bytes of `codes`."""
    if NATIVE:
        asm: tl.constexpr = _HIGH if HIGH else _LOW
        sums = tl.inline_asm_elementwise(asm, "=r,r,r,r", [pair, codes, sums], tl.int32, True, 1)
    else:
        bytes = codes >> (16 if HIGH else 0)
        sums += ((pair << 16) >> 16) * (bytes & 255) + (pair >> 16) * ((bytes >> 8) & 255)
    return sums


@triton.jit
def _quarters(four):
    """The four entries of the last dimension."""
    first, second = tl.split(tl.reshape(four, [four.shape[0], four.shape[1], 2, 2]))
    a, c = tl.split(first)
    b, d = tl.split(second)
    return a, b, c, d


@triton.jit
def _pairs(first, second):
    """Lower halves of `first`, (units, 1, 8), beside those of `second`: of even entries and of odd ones, four each."""
    even, odd = tl.split(tl.reshape((first & 0xFFFF) | (second << 16), [first.shape[0], 1, 4, 2]))
    return _quarters(even), _quarters(odd)


@triton.jit
def whole_inputs(parts, NATIVE: tl.constexpr):
    """The activations of the words' four parts, (units, 1, 8) float32 each, in whole numbers.

    Returns: pairs of them that the low halves of bytes meet, and the high halves; the sum of each unit; what whole
    numbers are multiplied with, NaN where an activation is NaN or infinite. The last two are (units, 1).
    """
    most = tl.zeros([parts[0].shape[0], 1], tl.int32)
    for i in tl.static_range(4):
        most = tl.maximum(most, tl.max(parts[i].to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=2))
    exponent = tl.maximum(most >> 23, _MOST + 1)
    up = ((-exponent + _BOTH) << 23).to(tl.float32, bitcast=True)[:, :, None]
    down = ((exponent - _MOST) << 23).to(tl.float32, bitcast=True)
    down = tl.where(most >= 0x7F800000, float("nan"), down)
    a = (parts[0] * up + _WHOLE).to(tl.int32, bitcast=True)
    b = (parts[1] * up + _WHOLE).to(tl.int32, bitcast=True)
    c = (parts[2] * up + _WHOLE).to(tl.int32, bitcast=True)
    d = (parts[3] * up + _WHOLE).to(tl.int32, bitcast=True)
    low, high = _pairs(a, c), _pairs(b, d)
    ones = tl.full(most.shape, ONES, tl.int32)
    total = tl.zeros_like(most)
    for i in tl.static_range(4):
        for odd in tl.static_range(2):
            total = _two_products(total, low[odd][i], ones, False, NATIVE)
            total = _two_products(total, high[odd][i], ones, False, NATIVE)
    return low, high, total, down


@triton.jit
def unit_sums(found, inputs, points, NATIVE: tl.constexpr):
    """Sums of the products of units, (units, outputs) float32.

    Args:
        found: words of 32 bits, (units, outputs, 4).
        inputs: what `whole_inputs` gave.
        points: what codes stand above zero by, (units, outputs) or one number.
    """
    low, high, total, down = inputs
    words = _quarters(found)
    sums = tl.zeros([found.shape[0], found.shape[1]], tl.int32) - total * points
    for i in tl.static_range(4):
        lower, upper = words[i] & NIBBLES, (words[i] >> 4) & NIBBLES
        for odd in tl.static_range(2):
            sums = _two_products(sums, low[odd][i], lower, odd == 1, NATIVE)
            sums = _two_products(sums, high[odd][i], upper, odd == 1, NATIVE)
    return sums.to(tl.float32) * down
