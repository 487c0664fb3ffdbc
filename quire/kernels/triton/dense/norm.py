"""RMS norm over rows of any length: one block a row, the row kept in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import device_of, next_power_of_2, release, wait
from quire.ops.norm import NormSpec, add_rms_norm, rms_norm
from quire.ops.registry import provide

LONGEST = 32768
"""Values of a row that fit into the registers of one block."""


@triton.jit(do_not_specialize=["x_stride", "delta_stride"])
def _norm_kernel(
    x,
    delta,
    weight,
    out,
    total,
    x_stride,
    delta_stride,
    eps: tl.constexpr,
    offset: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    release(PDL)
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < SIZE
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32) + offset
    wait(PDL)
    wide = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        wide += tl.load(delta + row * delta_stride + at, mask=inside, other=0.0).to(tl.float32)
        # Rounded like the sum that is stored and goes on.
        values = wide.to(total.dtype.element_ty)
        tl.store(total + row * SIZE + at, values, mask=inside)
        wide = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide) / SIZE + eps)
    tl.store(out + row * SIZE + at, (wide * scale * w).to(out.dtype.element_ty), mask=inside)


def _refuses(spec: NormSpec) -> str | None:
    return f"rows of more than {LONGEST} values" if spec.size > LONGEST else None


def _launch(x: Tensor, delta: Tensor | None, weight: Tensor, total: Tensor | None, spec: NormSpec) -> Tensor:
    rows, size = x.numel() // spec.size, spec.size
    flat = x.reshape(rows, size)
    out = torch.empty_like(flat, memory_format=torch.contiguous_format)
    if rows:
        block = next_power_of_2(size)
        _norm_kernel[(rows,)](
            flat,
            flat if delta is None else delta,
            weight,
            out,
            out if total is None else total,
            flat.stride(0),
            0 if delta is None else delta.stride(0),
            spec.eps,
            spec.offset,
            size,
            block,
            delta is not None,
            num_warps=min(max(block // 512, 1), 16),
            **device_of(x.device).options,
        )
    return out.view(x.shape)


@provide("triton", rms_norm, _refuses, batch_invariant=True)
def triton_rms_norm(x: Tensor, weight: Tensor, spec: NormSpec) -> Tensor:
    """See `rms_norm`."""
    return _launch(x, None, weight, None, spec)


@provide("triton", add_rms_norm, _refuses, batch_invariant=True)
def triton_add_rms_norm(residual: Tensor, delta: Tensor, weight: Tensor, spec: NormSpec) -> tuple[Tensor, Tensor]:
    """See `add_rms_norm`."""
    total = torch.empty_like(residual, memory_format=torch.contiguous_format)
    return _launch(residual, delta, weight, total, spec), total
