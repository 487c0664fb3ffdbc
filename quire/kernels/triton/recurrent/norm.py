"""RMS norm with a gate: one block for each group of each token."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import next_power_of_2
from quire.ops.norm import GatedNormSpec, gated_rms_norm
from quire.ops.registry import provide

LONGEST = 32768
"""Values of a group that fit into the registers of one block."""


@triton.jit
def _norm(
    x,  # (tokens, groups * SIZE)
    gate,  # the same, rows gate_stride apart
    weight,
    out,
    gate_stride,
    eps: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    SHARED: tl.constexpr,
):
    row, group = (tl.program_id(0) // GROUPS).to(tl.int64), tl.program_id(0) % GROUPS
    at = tl.arange(0, BLOCK)
    inside = at < SIZE
    wide = tl.load(x + (row * GROUPS + group) * SIZE + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + row * gate_stride + group * SIZE + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + (0 if SHARED else group * SIZE) + at, mask=inside, other=0.0).to(tl.float32)
    g = g / (1.0 + tl.exp(-g))
    if GATE_FIRST:
        wide *= g
    wide = wide * tl.rsqrt(tl.sum(wide * wide) / SIZE + eps) * w
    if not GATE_FIRST:
        wide *= g
    tl.store(out + (row * GROUPS + group) * SIZE + at, wide.to(out.dtype.element_ty), mask=inside)


def _refuses(spec: GatedNormSpec) -> str | None:
    return f"groups of more than {LONGEST} values" if spec.size > LONGEST else None


@provide("triton", gated_rms_norm, _refuses)
def triton_gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, spec: GatedNormSpec) -> Tensor:
    """See `gated_rms_norm`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if len(x):
        block = next_power_of_2(spec.size)
        _norm[(len(x) * spec.groups,)](
            x,
            gate,
            weight,
            out,
            gate.stride(0),
            spec.eps,
            spec.groups,
            spec.size,
            block,
            spec.gate_first,
            len(weight) == spec.size,
            num_warps=min(max(block // 512, 1), 16),
        )
    return out
