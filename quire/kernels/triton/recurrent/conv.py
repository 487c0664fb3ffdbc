"""The short convolution: one kernel for one token a sequence; for more, results and then what is kept."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import cdiv
from quire.kernels.triton.recurrent.chunks import pages_of, slots_of
from quire.ops.recurrent import ConvSpec, StatePages, causal_conv1d
from quire.ops.registry import provide
from quire.ops.step import StepInputs

TOKENS, CHANNELS, CHANNELS_OF_ONE = 32, 64, 256
"""Of a tile: tokens and channels; channels where there is one token."""


@triton.jit
def _silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit(do_not_specialize=["sequences"])
def _one(
    x,  # (sequences, channels), rows x_stride apart
    weight,  # (channels, WIDTH)
    bias,
    conv,  # (pages, WIDTH - 1, channels)
    slots,  # (3, sequences) int32
    out,  # (sequences, channels)
    x_stride,
    sequences,
    channels: tl.constexpr,
    WIDTH: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, c = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    begin, end, known = pages_of(slots, i, sequences)
    begin, end, known = begin * (WIDTH - 1), end * (WIDTH - 1), inside & known
    new = tl.load(x + i.to(tl.int64) * x_stride + c, mask=inside, other=0.0)
    total = new.to(tl.float32) * tl.load(weight + c * WIDTH + WIDTH - 1, mask=inside, other=0.0).to(tl.float32)
    for j in tl.static_range(WIDTH - 1):
        # Both pages may be one: what moves up is read before anything is written over it.
        old = tl.load(conv + (begin + j) * channels + c, mask=known, other=0.0)
        total += old.to(tl.float32) * tl.load(weight + c * WIDTH + j, mask=inside, other=0.0).to(tl.float32)
        if j > 0:
            tl.store(conv + (end + j - 1) * channels + c, old, mask=inside)
    tl.store(conv + (end + WIDTH - 2) * channels + c, new, mask=inside)
    if BIAS:
        total += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + i.to(tl.int64) * channels + c, _silu(total).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["sequences", "tokens"])
def _several(
    x,  # (tokens, channels), rows x_stride apart
    weight,
    bias,
    conv,
    slots,
    starts,  # (sequences + 1,) int32
    owner,  # (tokens,) int32
    out,  # (tokens, channels)
    x_stride,
    sequences,
    tokens,
    channels: tl.constexpr,
    WIDTH: tl.constexpr,
    BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    t, c = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real, inside = t < tokens, c < channels
    sequence = tl.load(owner + t, mask=real, other=0)
    offset = t - tl.load(starts + sequence)
    begin = tl.load(slots + sequence).to(tl.int64) * (WIDTH - 1)
    known = real & (tl.load(slots + 2 * sequences + sequence) == 0)
    total = tl.zeros((TOKENS, BLOCK), tl.float32)
    if BIAS:
        total += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    for j in tl.static_range(WIDTH):
        here = offset >= WIDTH - 1 - j
        at = (t - (WIDTH - 1 - j)).to(tl.int64) * x_stride
        now = tl.load(x + at[:, None] + c[None, :], mask=(real & here)[:, None] & inside[None, :], other=0.0)
        at = (begin + offset + j) * channels
        before = tl.load(conv + at[:, None] + c[None, :], mask=(known & ~here)[:, None] & inside[None, :], other=0.0)
        w = tl.load(weight + c * WIDTH + j, mask=inside, other=0.0).to(tl.float32)
        total += (now.to(tl.float32) + before.to(tl.float32)) * w[None, :]
    made = _silu(total).to(out.dtype.element_ty)
    tl.store(out + t.to(tl.int64)[:, None] * channels + c[None, :], made, mask=real[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["sequences"])
def _keep(
    x,
    conv,
    slots,
    starts,
    x_stride,
    sequences,
    channels: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, c = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    first = tl.load(starts + i)
    count = tl.load(starts + i + 1) - first
    begin, end, known = pages_of(slots, i, sequences)
    begin, end, known = begin * (WIDTH - 1), end * (WIDTH - 1), inside & known
    for j in tl.static_range(WIDTH - 1):
        # Ascending: what is written is never read afterwards, even if both pages are one.
        at = count - (WIDTH - 1) + j
        now = tl.load(x + (first + at).to(tl.int64) * x_stride + c, mask=inside & (at >= 0), other=0.0)
        before = tl.load(conv + (begin + at + WIDTH - 1) * channels + c, mask=known & (at < 0), other=0.0)
        tl.store(conv + (end + j) * channels + c, now + before, mask=inside & (count > 0))


@provide("triton", causal_conv1d)
def triton_causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, pages: StatePages, step: StepInputs, spec: ConvSpec
) -> Tensor:
    """See `causal_conv1d`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tokens, sequences, weight = len(x), len(step.seq_lens), weight.contiguous()
    if not tokens:
        return out
    slots, given = slots_of(step, pages.group), weight if bias is None else bias
    sizes = spec.channels, spec.width
    each = (sequences, cdiv(spec.channels, CHANNELS_OF_ONE))
    if step.max_query == 1:
        _one[each](
            x,
            weight,
            given,
            pages.conv,
            slots,
            out,
            x.stride(0),
            sequences,
            *sizes,
            bias is not None,
            CHANNELS_OF_ONE,
            num_warps=2,
        )
        return out
    starts = step.query_start
    _several[(cdiv(tokens, TOKENS), cdiv(spec.channels, CHANNELS))](
        x,
        weight,
        given,
        pages.conv,
        slots,
        starts,
        owners_of(step),
        out,
        x.stride(0),
        sequences,
        tokens,
        *sizes,
        bias is not None,
        TOKENS,
        CHANNELS,
        num_warps=4,
    )
    _keep[each](x, pages.conv, slots, starts, x.stride(0), sequences, *sizes, CHANNELS_OF_ONE, num_warps=2)
    return out


def owners_of(step: StepInputs) -> Tensor:
    """(tokens,) int32: the sequence of each token."""

    def make() -> Tensor:
        at = torch.arange(len(step.token_ids), device=step.query_start.device, dtype=torch.int32)
        return torch.searchsorted(step.query_start[1:].contiguous(), at, right=True, out_int32=True)

    return step.once("owners", make)
