"""Noise that depends on nothing but (seed, position, token id): no generator state, no order, no batch.

All mixing is exact integer arithmetic, so the bits are the same on every device and whatever else is in the batch. Only
the last two logarithms are floating point and may differ by a unit in the last place between devices.
"""

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
_LOW31 = 0x7FFFFFFF
# 2**-31 times the largest float32 below 1: the uniform number never rounds up to 1, so its logarithm stays finite.
_SCALE = (1.0 - 2.0**-24) * 2.0**-31


def _signed(value: int, bits: int) -> int:
    """The two's complement reading of the low `bits` of `value`; torch's integers are signed and wrap."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


# Finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): (shift, factor).
_MIX64 = [(30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)]
# triple32 (Chris Wellons, hash-prospector, public domain): a 32-bit mixer of very low bias.
_MIX32 = [(17, _signed(0xED5AD4BB, 32)), (11, _signed(0xAC4C1B51, 32)), (15, _signed(0x31848BAB, 32))]
_LAST_SHIFT = 14


def seed_key(seed: int) -> int:
    """Spread a request's seed over 64 bits, so that seeds 1 and 2 have nothing in common. Signed 64-bit."""
    value = (seed + GOLDEN) & (2**64 - 1)
    for shift, factor in _MIX64:
        value = ((value ^ (value >> shift)) * factor) & (2**64 - 1)
    return _signed(value, 64)


def row_keys(seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The two 32-bit keys of each row at its position.

    Args:
        seeds: (n,) int64 from `seed_key`.
        positions: (n,) int64, the position that the new token will have.

    Returns:
        Two (n, 1) int32.
    """
    state = seeds + (positions + 1) * _signed(GOLDEN, 64)
    for shift, factor in _MIX64:
        state = (state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor, 64)
    low = (state << 32) >> 32
    return low.int().unsqueeze(1), (state >> 32).int().unsqueeze(1)


def bits(keys: tuple[Tensor, Tensor], ids: Tensor) -> Tensor:
    """31 random bits per (row, token id): triple32 of the id, with one key before it and one half-way.

    Args:
        keys: from `row_keys`.
        ids: (m,) or (n, m) int32, token ids.

    Returns:
        (n, m) int32 in [0, 2**31).
    """
    state = ids ^ keys[0]
    shifted = torch.empty_like(state)
    for stage, (shift, factor) in enumerate(_MIX32):
        if stage == 2:
            state += keys[1]
        _xorshift(state, shift, shifted)
        state *= factor
    _xorshift(state, _LAST_SHIFT, shifted)
    return state.bitwise_and_(_LOW31)


def _xorshift(state: Tensor, shift: int, buffer: Tensor) -> None:
    """state ^= state >> shift without sign, in place."""
    torch.bitwise_right_shift(state, shift, out=buffer)
    buffer &= (1 << (32 - shift)) - 1
    state ^= buffer


def log_exponential(keys: tuple[Tensor, Tensor], ids: Tensor) -> Tensor:
    """The logarithm of a unit exponential variate per (row, token id): minus a standard Gumbel variate.

    argmax(x - log_exponential) is a draw from softmax(x) (the Gumbel-max trick). The uniform number is small, and exact
    to 31 bits, where the exponential is small: there the winners are, so a tie among 150,000 tokens is rarer than one
    draw in 10,000. Finite: between -22.2 and 2.9.

    Returns:
        (n, m) float32.
    """
    return log_exponential_of(bits(keys, ids))


def log_exponential_of(drawn: Tensor) -> Tensor:
    """The same from the bits, of any shape: float32, larger for larger bits."""
    return drawn.float().add_(0.5).mul_(-_SCALE).log1p_().neg_().log_()
