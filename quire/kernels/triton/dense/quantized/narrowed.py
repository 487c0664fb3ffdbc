"""Products of many rows in 8 bits on both sides: activations get a scale for each row as they are rounded.

For weights of 8 bits whose rows have a scale each. Floats go to the library, integers to a kernel of our own, since the
library leaves their sums in memory as integers. Inputs are put in the order of the weights' words as they are rounded,
which changes no sum.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.dense.quantized.weight import Weight, converts
from quire.kernels.triton.launch import device_of, release, wait

MOST_INPUTS = 1 << 15
"""Of a row that a block holds."""
INTEGER_ROWS = 128
"""Rows up to which weights of 8-bit integers are better left to other kernels."""
LIBRARY_OUTPUTS = 16
"""The outputs of the library's products are a multiple of this."""


def takes(weight: Weight, rows: int) -> bool:
    """Whether products with a weight are worth computing so: floats of 8 bits always, integers of many rows."""
    form = weight.storage.form
    if form.group is not None or form.zeros or form.factor or form.row_block > 1 or weight.inputs > MOST_INPUTS:
        return False
    if form.element == "int8":
        return rows > INTEGER_ROWS
    if form.element != "fp8_e4m3" or weight.storage.dtype != "bfloat16" or weight.outputs % LIBRARY_OUTPUTS:
        return False
    return _scales_rows(weight.data.device)


@functools.cache
def _scales_rows(device: torch.device) -> bool:
    """Whether the library multiplies floats of 8 bits whose rows have scales, which it does into bfloat16 only."""
    return converts(device) and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def _round_kernel(x, out, scales, stride, K: tl.constexpr, WIDTH: tl.constexpr, MOST: tl.constexpr, RUNS: tl.constexpr,
                  PDL: tl.constexpr):  # fmt: skip
    """One row: its scale, and its WIDTH values in 8 bits, the halves of 64 inputs byte by byte in turns."""
    release(PDL)
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, RUNS * 64)
    wait(PDL)
    value = tl.load(x + row * stride + at, mask=at < K, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=0), 1e-12) / MOST
    # Neither maxima nor bounds let NaN through on a GPU: it spoils the scale, and with it the row.
    scale = tl.where(tl.sum((value != value).to(tl.int32), axis=0) > 0, float("nan"), scale)
    value = tl.minimum(tl.maximum(value * (1.0 / scale), -MOST), MOST)
    if out.dtype.element_ty == tl.int8:
        # Added to this, a float32 has no bits left for a fraction.
        value = value + 12582912.0 - 12582912.0
    turned = tl.permute(tl.reshape(value.to(out.dtype.element_ty), [RUNS, 2, 32]), [0, 2, 1])
    tl.store(out + row * WIDTH + at, tl.reshape(turned, [RUNS * 64]), mask=at < WIDTH)
    tl.store(scales + row, scale)


def rounded(x: Tensor, dtype: torch.dtype, width: int) -> tuple[Tensor, Tensor]:
    """Rows of x in 8 bits, `width` of them in the order of words, and the scale of each, (rows, 1) float32."""
    rows, inputs = x.shape
    out = torch.empty((rows, width), dtype=dtype, device=x.device)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    most = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    runs = triton.next_power_of_2(triton.cdiv(inputs, 64))
    _round_kernel[(rows,)](
        x,
        out,
        scales,
        x.stride(0),
        inputs,
        width,
        most,
        runs,
        num_warps=min(16, max(1, runs // 8)),
        **device_of(x.device).options,
    )
    return out, scales


@triton.jit(do_not_specialize=["rows"])
def _product_kernel(
    x, x_scales, weight, scales, bias, out, rows,
    K: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr, ABREAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """ROWS x OUTPUTS of the result; blocks that follow each other share activations, then weights."""
    release(PDL)
    wait(PDL)
    block = tl.program_id(0)
    tall, wide = tl.cdiv(rows, ROWS), tl.cdiv(N, OUTPUTS)
    band = block // (ABREAST * wide) * ABREAST
    height = tl.minimum(tall - band, ABREAST)
    inner = block % (ABREAST * wide)
    m = (band + inner % height) * ROWS + tl.arange(0, ROWS)
    n = inner // height * OUTPUTS + tl.arange(0, OUTPUTS)
    safe_m, safe_n = tl.minimum(m, rows - 1).to(tl.int64), tl.minimum(n, N - 1).to(tl.int64)
    at = tl.arange(0, DEPTH)
    x_at, w_at = x + safe_m[:, None] * K + at[None, :], weight + safe_n[:, None] * K + at[None, :]
    sums = tl.zeros((ROWS, OUTPUTS), tl.int32)
    for k in range(0, K, DEPTH):
        inside = (k + at < K)[None, :]
        value, w = tl.load(x_at + k, mask=inside, other=0), tl.load(w_at + k, mask=inside, other=0)
        sums = tl.dot(value, tl.trans(w), sums, out_dtype=tl.int32)
    result = sums.to(tl.float32) * tl.load(x_scales + safe_m)[:, None]
    result *= tl.load(scales + safe_n).to(tl.float32)[None, :]
    if BIAS:
        result += tl.load(bias + safe_n).to(tl.float32)[None, :]
    tl.store(out + m.to(tl.int64)[:, None] * N + n[None, :], result.to(out.dtype.element_ty),
             mask=(m < rows)[:, None] & (n < N)[None, :])  # fmt: skip


def product(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias, x rounded to 8 bits."""
    codes = weight.words.view(torch.uint8)
    if weight.storage.form.element == "int8":
        return _integers(x, codes.view(torch.int8), weight.scales, bias)
    values, scales = rounded(x, torch.float8_e4m3fn, weight.storage.width)
    return torch._scaled_mm(
        values, codes.view(torch.float8_e4m3fn).T, scales, weight.scales.float().view(1, -1), bias,
        out_dtype=x.dtype, use_fast_accum=True,
    )  # fmt: skip


def _integers(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    values, of_rows = rounded(x, torch.int8, codes.shape[1])
    rows, outputs = len(x), len(codes)
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    tall, wide = 128, 128
    _product_kernel[(triton.cdiv(rows, tall) * triton.cdiv(outputs, wide),)](
        values, of_rows, codes, scales, out if bias is None else bias, out, rows,
        K=codes.shape[1], N=outputs, BIAS=bias is not None, ROWS=tall, OUTPUTS=wide, DEPTH=128, ABREAST=8,
        num_warps=8, num_stages=device_of(x.device).stages(4), **device_of(x.device).options,
    )  # fmt: skip
    return out
