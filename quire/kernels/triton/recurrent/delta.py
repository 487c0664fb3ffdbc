"""The gated delta rule. One token a sequence: every state is read and written once; longer: see `delta_chunks`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import cdiv
from quire.kernels.triton.recurrent.chunks import block_of, pages_of, slots_of, softplus
from quire.kernels.triton.recurrent.delta_chunks import by_chunks
from quire.ops.delta import KEY_EPS, DeltaSpec, DeltaWeights, gated_delta_rule
from quire.ops.recurrent import StatePages
from quire.ops.registry import provide
from quire.ops.step import StepInputs

LARGEST = 128
"""Values of a key or a value: tiles of more do not fit."""
VALUES, WARPS = 32, 4
"""Values of a head that a block takes where there is one token, and its warps."""


@triton.jit(do_not_specialize=["gates_stride", "sequences"])
def _one(
    qkv,  # (sequences, 2 * key_heads * KEY + heads * VALUE)
    gates,  # (sequences, 2 * heads), rows gates_stride apart
    a_log,
    dt_bias,
    state,  # (pages, heads, KEY, VALUE)
    slots,  # (3, sequences) int32
    out,  # (sequences, heads * VALUE)
    gates_stride,
    sequences,
    scale: tl.constexpr,
    EPS: tl.constexpr,
    key_heads: tl.constexpr,
    heads: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    i, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    k_at, v_at = tl.arange(0, BLOCK_K), tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    k_in, v_in = k_at < KEY, v_at < VALUE
    inside = k_in[:, None] & v_in[None, :]
    tile = k_at[:, None] * VALUE + v_at[None, :]
    begin, end, known = pages_of(slots, i, sequences)
    s = tl.load(state + (begin * heads + head) * KEY * VALUE + tile, mask=inside & known, other=0.0)
    row = qkv + i.to(tl.int64) * (2 * key_heads * KEY + heads * VALUE)
    shared = head // (heads // key_heads) * KEY
    q = tl.load(row + shared + k_at, mask=k_in, other=0.0).to(tl.float32)
    k = tl.load(row + key_heads * KEY + shared + k_at, mask=k_in, other=0.0).to(tl.float32)
    v = tl.load(row + 2 * key_heads * KEY + head * VALUE + v_at, mask=v_in, other=0.0).to(tl.float32)
    q *= tl.rsqrt(tl.sum(q * q) + EPS) * scale
    k *= tl.rsqrt(tl.sum(k * k) + EPS)
    at = i.to(tl.int64) * gates_stride
    rate = 1.0 / (1.0 + tl.exp(-tl.load(gates + at + head).to(tl.float32)))
    slack = tl.load(gates + at + heads + head).to(tl.float32) + tl.load(dt_bias + head)
    s *= tl.exp(-tl.exp(tl.load(a_log + head)) * softplus(slack))
    change = rate * (v - tl.sum(s * k[:, None], axis=0))
    s += k[:, None] * change[None, :]
    tl.store(state + (end * heads + head) * KEY * VALUE + tile, s, mask=inside)
    made = tl.sum(s * q[:, None], axis=0).to(out.dtype.element_ty)
    tl.store(out + (i.to(tl.int64) * heads + head) * VALUE + v_at, made, mask=v_in)


def _refuses(spec: DeltaSpec) -> str | None:
    return f"heads of more than {LARGEST} values" if max(spec.key_dim, spec.value_dim) > LARGEST else None


@provide("triton", gated_delta_rule, _refuses)
def triton_gated_delta_rule(
    qkv: Tensor, gates: Tensor, weights: DeltaWeights, pages: StatePages, step: StepInputs, spec: DeltaSpec
) -> Tensor:
    """See `gated_delta_rule`."""
    tokens, heads = len(qkv), spec.value_heads
    out = torch.empty(tokens, heads * spec.value_dim, dtype=qkv.dtype, device=qkv.device)
    if not tokens:
        return out
    qkv, sizes = qkv.contiguous(), (spec.key_heads, heads, spec.key_dim, spec.value_dim, block_of(spec.key_dim))
    inputs, ends = (qkv, gates, weights.a_log, weights.dt_bias), (gates.stride(0), len(step.seq_lens))
    if step.max_query > 1:
        by_chunks(inputs, pages, out, step, spec)
        return out
    block = min(VALUES, block_of(spec.value_dim))
    _one[(tokens * heads, cdiv(spec.value_dim, block))](
        *inputs,
        pages.state,
        slots_of(step, pages.group),
        out,
        *ends,
        spec.key_dim**-0.5,
        KEY_EPS,
        *sizes,
        block,
        num_warps=WARPS,
    )
    return out
