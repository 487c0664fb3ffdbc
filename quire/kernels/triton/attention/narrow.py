"""Keys and values of 8 bits in Triton's attention: see `quire.ops.narrow` for what the formats mean.

Kernels see such pools as bytes and convert them as they load and store. Where the GPU has no instructions for it, and
under the interpreter, which rounds 8 bits wrongly and takes NaN for a number, they convert by whole numbers.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import INTERPRETED, device_of
from quire.ops.attention import KVPages
from quire.ops.narrow import raw

E4M3, E5M2 = tl.constexpr(1), tl.constexpr(2)
FORMATS = {torch.float8_e4m3fn: E4M3.value, torch.float8_e5m2: E5M2.value}
LARGEST_HALF = tl.constexpr(65504.0)


def kept(pages: KVPages) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The pools as kernels take them, bytes if they are of 8 bits, and what a launch adds to say so."""
    form = FORMATS.get(pages.k.dtype, 0)
    converts = bool(form) and not INTERPRETED and device_of(pages.k.device).converts
    return raw(pages.k), raw(pages.v), {"FORMAT": form, "CONVERTS": converts}


def scales(pages: KVPages) -> tuple[float, float]:
    """What stored keys and values are worth, times themselves."""
    return (pages.k_scale, pages.v_scale) if pages.k.dtype in FORMATS else (1.0, 1.0)


@triton.jit
def narrowed(x, inverse, pool, FORMAT: tl.constexpr, CONVERTS: tl.constexpr):
    """`x`, float32, as `pool` keeps it: times `inverse` where it has 8 bits, rounded to the nearest, ties to even."""
    if FORMAT == 0:
        stored = x.to(pool.dtype.element_ty)
    else:
        largest: tl.constexpr = 448.0 if FORMAT == E4M3 else 57344.0
        x *= inverse
        # NaN is neither above nor below.
        x = tl.where(x > largest, largest, tl.where(x < -largest, -largest, x))
        if CONVERTS:
            stored = x.to(tl.float8e4nv if FORMAT == E4M3 else tl.float8e5).to(tl.uint8, bitcast=True)
        else:
            stored = _rounded(x, FORMAT)
    return stored


@triton.jit
def _rounded(x, FORMAT: tl.constexpr):
    """The bits of `x`, float32 and not too large, in 8."""
    # Bits that fall away, the difference of the exponents' biases, the smallest normal number, and a number whose last
    # bit is worth as much as that of the numbers below it: adding it rounds them.
    lost: tl.constexpr = 20 if FORMAT == E4M3 else 21
    bias: tl.constexpr = (120 << 3) if FORMAT == E4M3 else (112 << 2)
    normal: tl.constexpr = 2.0**-6 if FORMAT == E4M3 else 2.0**-14
    magic: tl.constexpr = 2.0**14 if FORMAT == E4M3 else 2.0**7
    bits = x.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    bits = bits & 0x7FFFFFFF
    size = bits.to(tl.float32, bitcast=True)
    rounded = ((bits + ((1 << (lost - 1)) - 1) + ((bits >> lost) & 1)) >> lost) - bias
    small = (size + magic).to(tl.int32, bitcast=True) & 0xFF
    result = tl.where(size < normal, small, tl.where(x == x, rounded, 0x7F))
    return (result | sign).to(tl.uint8)


@triton.jit
def widened(stored, FORMAT: tl.constexpr, CONVERTS: tl.constexpr):
    """What was loaded from a pool, unscaled: float16, which holds every value of 8 bits, or as it is."""
    if FORMAT == 0:
        wide = stored
    elif CONVERTS:
        wide = stored.to(tl.float8e4nv if FORMAT == E4M3 else tl.float8e5, bitcast=True).to(tl.float16)
    elif FORMAT == E5M2:
        wide = (stored.to(tl.uint16) << 8).to(tl.float16, bitcast=True)
    else:
        bits = stored.to(tl.uint16)
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
        # The biases of the exponents differ by 8.
        wide = tl.where((bits & 0x7F) == 0x7F, float("nan"), half.to(tl.float32) * 256.0).to(tl.float16)
    return wide


@triton.jit
def pairs_widened(stored, FORMAT: tl.constexpr, CONVERTS: tl.constexpr):
    """What two bytes that lie side by side are worth, unscaled: the first of each pair, and the second; float16."""
    if CONVERTS:
        convert: tl.constexpr = "cvt.rn.f16x2.e4m3x2" if FORMAT == E4M3 else "cvt.rn.f16x2.e5m2x2"
        first: tl.constexpr = "{.reg .b32 t; .reg .b16 l, h; prmt.b32 t, $1, 0, 0x4420; mov.b32 {l, h}, t; "
        second: tl.constexpr = "{.reg .b32 t; .reg .b16 l, h; prmt.b32 t, $1, 0, 0x4431; mov.b32 {l, h}, t; "
        asm_first: tl.constexpr = first + convert + " $0, l;}"
        asm_second: tl.constexpr = second + convert + " $0, l;}"
        a = tl.inline_asm_elementwise(asm_first, "=r,r", [stored], tl.float16, True, 2)
        b = tl.inline_asm_elementwise(asm_second, "=r,r", [stored], tl.float16, True, 2)
    else:
        a = widened((stored & 0xFF).to(tl.uint8), FORMAT, CONVERTS)
        b = widened((stored >> 8).to(tl.uint8), FORMAT, CONVERTS)
    return a, b


@triton.jit
def halved(x, FORMAT: tl.constexpr):
    """Queries for products with what `widened` gives: float16 too, bounded like it. Float32 stays what it is."""
    if FORMAT != 0 and x.dtype != tl.float32:
        most: tl.constexpr = LARGEST_HALF
        wide = x.to(tl.float32)
        x = tl.where(wide > most, most, tl.where(wide < -most, -most, wide)).to(tl.float16)
    return x
