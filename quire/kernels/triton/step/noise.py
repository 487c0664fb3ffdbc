"""The noise of `quire.ops.noise` within a kernel: the same bits; of the two logarithms the last place may differ."""

import triton
import triton.language as tl


@triton.jit
def mix64(z):
    """The finaliser of splitmix64, on uint64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def row_key(seed, position):
    """The key of a row, uint64, from its seed's key (int64) and the position of the new token."""
    return mix64(seed.to(tl.uint64) + (position.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15)


@triton.jit
def log_exponential(key, ids):
    """The logarithm of a unit exponential variate for each of `ids`, int32, of the row with `key`."""
    x = ids.to(tl.uint32, bitcast=True) ^ (key & 0xFFFFFFFF).to(tl.uint32)
    x = (x ^ (x >> 17)) * 0xED5AD4BB
    x = (x ^ (x >> 11)) * 0xAC4C1B51
    x = x + (key >> 32).to(tl.uint32)
    x = (x ^ (x >> 15)) * 0x31848BAB
    x = (x ^ (x >> 14)) & 0x7FFFFFFF
    # As in the reference: 2**-31 times the largest float32 below 1, so that the number never rounds up to 1.
    uniform = (x.to(tl.float32) + 0.5) * ((1.0 - 2.0**-24) * 2.0**-31)
    return tl.log(-log_of_complement(uniform))


@triton.jit
def log_of_complement(u):
    """log(1 - u) for u in (0, 1), exact to a few units in the last place also where u is small.

    Twice the artanh of (w - 1) / (w + 1), by its series, with w in [0.7, 1.42] and the power of two taken out; where u
    is below 0.29 nothing is taken out, and w - 1 is -u without rounding.
    """
    far = u > 0.29
    w = 1.0 - u
    bits = w.to(tl.int32, bitcast=True)
    # The exponent that leaves w in [0.7, 1.42].
    power = tl.where(far, ((bits + 0x004AFB0D) >> 23) - 127, 0)
    m = tl.where(far, (bits - (power << 23)).to(tl.float32, bitcast=True) - 1.0, -u)
    f = tl.div_rn(m, 2.0 + m)
    z = f * f
    series = 0.11111111 + z * 0.09090909
    series = 0.14285714 + z * series
    series = 0.2 + z * series
    series = 0.33333333 + z * series
    return power.to(tl.float32) * 0.6931471805599453 + (2.0 * f + 2.0 * f * (z * series))
