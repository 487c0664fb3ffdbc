"""The gate of a feed-forward layer, one pass over its inputs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import cdiv, device_of, next_power_of_2, release, wait
from quire.ops.activation import GateSpec, gated_activation
from quire.ops.registry import provide

BLOCK, LONG_BLOCK, MANY = 1024, 8192, 2048
"""Values that a program takes; and where rows are long, of so many rows or more."""


@triton.jit
def activate(gate, KIND: tl.constexpr):
    """The activation called KIND of float32 values."""
    if KIND == "silu":
        return gate * tl.sigmoid(gate)
    # tanh(z) = 2 sigmoid(2 z) - 1, which overflows on neither side.
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
    return gate * tl.sigmoid(2 * inner)


@triton.jit(do_not_specialize=["stride"])
def _gate_kernel(gate_up, out, stride, INNER: tl.constexpr, KIND: tl.constexpr, SIZE: tl.constexpr, PDL: tl.constexpr):
    release(PDL)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = at < INNER
    wait(PDL)
    gate = tl.load(gate_up + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + INNER + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * INNER + at, (activate(gate, KIND) * up).to(out.dtype.element_ty), mask=inside)


@provide("triton", gated_activation, batch_invariant=True)
def triton_gated_activation(gate_up: Tensor, spec: GateSpec) -> Tensor:
    """See `gated_activation`."""
    rows, inner = len(gate_up), spec.inner
    out = torch.empty((rows, inner), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        # 168 us instead of 186 for 8,192 rows of 14,336 values on an H200.
        size = LONG_BLOCK if rows >= MANY and inner >= LONG_BLOCK else min(BLOCK, next_power_of_2(inner))
        _gate_kernel[(rows, cdiv(inner, size))](
            gate_up, out, gate_up.stride(0), inner, spec.activation, size, num_warps=max(4, size // 512),
            **device_of(gate_up.device).options,
        )  # fmt: skip
    return out
