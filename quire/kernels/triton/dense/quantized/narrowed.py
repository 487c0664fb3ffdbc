"""Products of many rows in 8 bits on both sides: activations get a scale for each row as they are rounded.

For weights of 8 bits whose rows have a scale each, and floats with one for each block of 128 x 128, beside which
activations get one for 128 inputs. Floats go to the library, integers to a kernel of our own, since the library leaves
their sums in memory as integers. Inputs are put in the order of the weights' words as they are rounded, which changes
no sum.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.dense.quantized.weight import Weight, converts
from quire.kernels.triton.launch import cdiv, device_of, next_power_of_2, release, wait

MOST_INPUTS = 1 << 15
"""Of a row that a block holds."""
INTEGER_ROWS = 128
"""Rows up to which weights of 8-bit integers are better left to other kernels."""
LIBRARY_OUTPUTS = 16
"""The outputs of the library's products are a multiple of this."""
BLOCK = 128
"""Rows and inputs of a weight's block."""


def takes(weight: Weight, rows: int) -> bool:
    """Whether products with a weight are worth computing so: floats of 8 bits always, integers of many rows."""
    form = weight.storage.form
    if form.zeros or form.factor or form.shifted or weight.inputs > MOST_INPUTS:
        return False
    if in_blocks(weight):
        return True
    if form.group is not None or form.row_block > 1:
        return False
    if form.element == "int8":
        return rows > INTEGER_ROWS
    if form.element != "fp8_e4m3" or weight.storage.dtype != "bfloat16" or weight.outputs % LIBRARY_OUTPUTS:
        return False
    return _scales_rows(weight.data.device)


def in_blocks(weight: Weight) -> bool:
    """Whether the library takes a weight whose blocks have scales: so it does by fours along the inputs."""
    form, shape = weight.storage.form, (weight.outputs % BLOCK, weight.inputs % (4 * BLOCK))
    if form.element != "fp8_e4m3" or (form.row_block, form.group, form.scale) != (BLOCK, BLOCK, "float32"):
        return False
    return shape == (0, 0) and weight.storage.dtype == "bfloat16" and _scales_blocks(weight.data.device)


@functools.cache
def _scales_rows(device: torch.device) -> bool:
    """Whether the library multiplies floats of 8 bits whose rows have scales, which it does into bfloat16 only."""
    return converts(device) and torch.cuda.get_device_capability(device) >= (9, 0)


@functools.cache
def _scales_blocks(device: torch.device) -> bool:
    """Whether the library multiplies floats of 8 bits whose blocks have scales: on Hopper, from CUDA 12.9 on."""
    if not _scales_rows(device) or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    major, minor = (torch.version.cuda or "0.0").split(".")[:2]
    return (int(major), int(minor)) >= (12, 9)


@triton.jit(do_not_specialize=["across"])
def _round_kernel(x, out, scales, stride, across, K: tl.constexpr, WIDTH: tl.constexpr, MOST: tl.constexpr,
                  RUNS: tl.constexpr, GROUP: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """One row: a scale for every GROUP inputs, `across` apart, and WIDTH values, halves of 64 byte by byte in turns."""
    release(PDL)
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, RUNS * 64)
    COUNT: tl.constexpr = RUNS * 64 // GROUP
    wait(PDL)
    value = tl.load(x + row * stride + at, mask=at < K, other=0.0).to(tl.float32)
    value = tl.reshape(value, [COUNT, GROUP])
    scale = tl.maximum(tl.max(tl.abs(value), axis=1), 1e-12) / MOST
    # Neither maxima nor bounds let NaN through on a GPU: it spoils the scale, and with it the row.
    scale = tl.where(tl.sum((value != value).to(tl.int32), axis=1) > 0, float("nan"), scale)
    value = tl.minimum(tl.maximum(value * (1.0 / scale)[:, None], -MOST), MOST)
    if out.dtype.element_ty == tl.int8:
        # Added to this, a float32 has no bits left for a fraction.
        value = value + 12582912.0 - 12582912.0
    turned = tl.permute(tl.reshape(value.to(out.dtype.element_ty), [RUNS, 2, 32]), [0, 2, 1])
    tl.store(out + row * WIDTH + at, tl.reshape(turned, [RUNS * 64]), mask=at < WIDTH)
    group = tl.arange(0, COUNT)
    tl.store(scales + group * across + row, scale, mask=group * GROUP < K)


def rounded(x: Tensor, dtype: torch.dtype, width: int, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows of x in 8 bits, `width` of them in the order of words, and their scales.

    Scales are float32, (rows, 1) or with a `group` (rows, inputs / group), column by column. Then there are a few rows
    more than were given, of which nothing is said, since the library takes them by sixteens.
    """
    rows, inputs = x.shape
    tall = rows if group is None else cdiv(rows, LIBRARY_OUTPUTS) * LIBRARY_OUTPUTS
    runs = next_power_of_2(cdiv(inputs, 64))
    out = torch.empty((tall, width), dtype=dtype, device=x.device)
    scales = torch.empty((inputs // group if group else 1, tall), dtype=torch.float32, device=x.device)
    most = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    _round_kernel[(rows,)](
        x, out, scales, x.stride(0), tall, K=inputs, WIDTH=width, MOST=most, RUNS=runs, GROUP=group or runs * 64,
        num_warps=min(16, max(1, runs // 8)), **device_of(x.device).options,
    )  # fmt: skip
    return out, scales.T if group else scales.view(-1, 1)


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
    blocks = in_blocks(weight)
    values, scales = rounded(x, torch.float8_e4m3fn, weight.storage.width, BLOCK if blocks else None)
    mine = weight.scales.T if blocks else weight.scales.float().view(1, -1)
    # To products whose scales are of blocks the library adds nothing.
    added = None if blocks else bias
    made = torch._scaled_mm(
        values, codes.view(torch.float8_e4m3fn).T, scales, mine, added, out_dtype=x.dtype, use_fast_accum=not blocks
    )[: len(x)]
    return made if bias is None or not blocks else made.add_(bias)


def _integers(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    values, of_rows = rounded(x, torch.int8, codes.shape[1])
    rows, outputs = len(x), len(codes)
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    tall, wide = 128, 128
    _product_kernel[(cdiv(rows, tall) * cdiv(outputs, wide),)](
        values, of_rows, codes, scales, out if bias is None else bias, out, rows,
        K=codes.shape[1], N=outputs, BIAS=bias is not None, ROWS=tall, OUTPUTS=wide, DEPTH=128, ABREAST=8,
        num_warps=8, num_stages=device_of(x.device).stages(4), **device_of(x.device).options,
    )  # fmt: skip
    return out
