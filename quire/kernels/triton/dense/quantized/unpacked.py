"""Products of many rows: weights become values once for all of them, some rows of weights at a time, for the library.

What is made is the same as what the reference makes, to the bit, but for numbers of columns: activations have those in
them already. With thousands of rows the product takes ten times as long as this.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.dense.quantized.decode import eights, fours, scale
from quire.kernels.triton.dense.quantized.sweep import row_words
from quire.kernels.triton.dense.quantized.weight import Weight
from quire.kernels.triton.launch import cdiv, device_of, release, wait

TILE_VALUES = 1 << 25
"""Values of a weight that exist as such at one time."""
LINES, WORDS = 16, 128
"""Rows and words of a block."""


@triton.jit
def _spread(table, n, k, GROUP: tl.constexpr, GROUPS: tl.constexpr):
    """What the groups of inputs `k` of rows `n` hold in a table."""
    return tl.load(table + n[:, None] * GROUPS + tl.minimum(k // GROUP, GROUPS - 1)[None, :])


@triton.jit(do_not_specialize=["first", "count"])
def _unpack_kernel(
    words, scales, zeros, factors, out, first, count,
    K: tl.constexpr, KIND: tl.constexpr, SCALE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, ROW_BLOCK: tl.constexpr, ZEROS: tl.constexpr, FACTOR: tl.constexpr,
    LINES: tl.constexpr, WORDS: tl.constexpr, NATIVE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows `first` to `first + count` as values, (count, K)."""
    release(PDL)
    wait(PDL)
    PER: tl.constexpr = 16 // BITS
    ROW: tl.constexpr = row_words(K, BITS)
    row = tl.program_id(0) * LINES + tl.arange(0, LINES)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    n = (first + tl.minimum(row, count - 1)).to(tl.int64)
    inside = (row < count)[:, None] & (word < ROW)[None, :]
    found = tl.load(words + n[:, None] * ROW + word[None, :], mask=inside, other=0)
    parts = fours(found, KIND, tl.float32, False) if BITS == 4 else eights(found, KIND, tl.float32, False)
    each = tl.full(n.shape, 1.0, tl.float32)
    if FACTOR != "":
        each = tl.load(factors + n)
    for i in tl.static_range(PER):
        k = word // 32 * (32 * PER) + word % 32 + 32 * i
        value = parts[i]
        if ZEROS:
            value -= _spread(zeros, n, k, GROUP, GROUPS).to(tl.float32)
        if GROUP > 0:
            factor = scale(_spread(scales, n // ROW_BLOCK, k, GROUP, GROUPS), SCALE)
        else:
            factor = scale(tl.load(scales + n // ROW_BLOCK), SCALE)[:, None]
        value *= factor / each[:, None] if FACTOR == "divide" else factor * each[:, None]
        tl.store(
            out + row.to(tl.int64)[:, None] * K + k[None, :],
            value.to(out.dtype.element_ty),
            mask=inside & (k < K)[None, :],
        )


def values(weight: Weight, first: int, count: int, dtype: torch.dtype) -> Tensor:
    """Rows `first` to `first + count` of a weight: (count, inputs)."""
    out = torch.empty((count, weight.inputs), dtype=weight.sums(dtype), device=weight.data.device)
    _unpack_kernel[(cdiv(count, LINES), cdiv(weight.row_words, WORDS))](
        *weight.tensors, out, first, count, K=weight.inputs, LINES=LINES, WORDS=WORDS,
        **weight.constants, **device_of(out.device).options,
    )  # fmt: skip
    if weight.shifts is None:
        return out
    shifts = weight.shifts[first : first + count].repeat_interleave(weight.storage.form.group or weight.inputs, 1)
    return out.add_(shifts[:, : weight.inputs]).to(dtype)


def product(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias."""
    out = torch.empty((len(x), weight.outputs), dtype=x.dtype, device=x.device)
    step = max(LINES, TILE_VALUES // weight.inputs // LINES * LINES)
    for first in range(0, weight.outputs, step):
        count = min(step, weight.outputs - first)
        tile, share = values(weight, first, count, x.dtype), out[:, first : first + count]
        if bias is None:
            torch.mm(x, tile.T, out=share)
        else:
            torch.addmm(bias[first : first + count], x, tile.T, out=share)
    return out
