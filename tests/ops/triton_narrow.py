"""Kernels that do nothing but convert 8 bits, for tests: with the interpreter, and on a GPU both ways."""

import torch
import triton
import triton.language as tl

from quire.kernels.triton.attention.narrow import FORMATS, narrowed, widened


@triton.jit
def _widen(stored, out, FORMAT: tl.constexpr, CONVERTS: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, widened(tl.load(stored + at), FORMAT, CONVERTS))


@triton.jit
def _narrow(x, out, inverse, FORMAT: tl.constexpr, CONVERTS: tl.constexpr, N: tl.constexpr):
    at = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out + at, narrowed(tl.load(x + at), inverse, out, FORMAT, CONVERTS))


def widen(stored, dtype, converts=False):
    """Bytes of `dtype` in float16."""
    out = torch.empty_like(stored, dtype=torch.float16)
    _widen[(1,)](stored, out, FORMAT=FORMATS[dtype], CONVERTS=converts, N=len(stored))
    return out


def narrow(x, dtype, scale, converts=False):
    """Bytes of `x` in `dtype`; the length of `x` is a multiple of 65,536."""
    out = torch.empty_like(x, dtype=torch.uint8)
    _narrow[(len(x) >> 16,)](x, out, 1.0 / scale, FORMAT=FORMATS[dtype], CONVERTS=converts, N=1 << 16)
    return out
