"""Triton kernel between the projection and attention: norm and rotate heads, write keys and values to their pages.

One program serves a token and a few of its heads; queries, keys and values lie side by side and differ only in what is
done to them and where they go.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.attention.narrow import kept, narrowed, scales
from quire.kernels.triton.attention.shared import partner, rotated
from quire.kernels.triton.launch import begin, cdiv, device_of, next_power_of_2
from quire.ops.attention import AttentionSpec, HeadWeights, KVPages, prepare
from quire.ops.registry import provide
from quire.ops.step import StepInputs


@triton.jit
def _prepare(
    qkv,  # (tokens, HEADS + 2 * KV_HEADS, D): queries, keys, values
    out,  # (tokens, HEADS, D): queries
    k_pool,  # [slots, KV_HEADS, D]
    v_pool,
    slots,  # (tokens,) int64
    positions,  # (tokens,) int64
    angles,  # (positions, ROTARY) float32
    q_norm,
    k_norm,
    eps,
    k_inverse,
    v_inverse,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
    ROTARY: tl.constexpr,
    FORMAT: tl.constexpr,
    CONVERTS: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, DP)
    other = partner(d, ROTARY, DP)
    inside = (d < D)[None, :]
    is_q, is_kv = head < HEADS, head < HEADS + 2 * KV_HEADS
    is_k = (head >= HEADS) & (head < HEADS + KV_HEADS)
    is_v = is_kv & (head >= HEADS + KV_HEADS)
    base = qkv + (token * (HEADS + 2 * KV_HEADS) + head)[:, None] * D
    raw = tl.load(base + d[None, :], mask=is_kv[:, None] & inside, other=0.0)
    x = raw.to(tl.float32)
    y = tl.load(base + other[None, :], mask=(is_q | is_k)[:, None] & inside, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        q_weight = tl.load(q_norm + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
        k_weight = tl.load(k_norm + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
        x *= scale * tl.where(is_q[:, None], q_weight, k_weight)
        q_weight = tl.load(q_norm + other, mask=d < D, other=0.0).to(tl.float32)[None, :]
        k_weight = tl.load(k_norm + other, mask=d < D, other=0.0).to(tl.float32)[None, :]
        y *= scale * tl.where(is_q[:, None], q_weight, k_weight)
    turned = rotated(x, y, d, angles + tl.load(positions + token) * ROTARY, ROTARY)
    tl.store(out + (token * HEADS + head)[:, None] * D + d[None, :], turned, mask=is_q[:, None] & inside)
    slot = tl.load(slots + token) * KV_HEADS - HEADS
    # In the dtype of queries first, as the definition has it.
    turned = turned.to(qkv.dtype.element_ty).to(tl.float32)
    key = narrowed(turned, k_inverse, k_pool, FORMAT, CONVERTS)
    value = narrowed(raw.to(tl.float32), v_inverse, v_pool, FORMAT, CONVERTS)
    tl.store(k_pool + (slot + head)[:, None] * D + d[None, :], key, mask=is_k[:, None] & inside)
    tl.store(v_pool + (slot - KV_HEADS + head)[:, None] * D + d[None, :], value, mask=is_v[:, None] & inside)


@triton.jit
def _normed(low, high, is_q, q_norm, k_norm, eps, D: tl.constexpr, NORM: tl.constexpr):
    """Both halves of heads, (n, D // 2) float32 each, normed by the weights of queries or of keys."""
    if NORM:
        d = tl.arange(0, D // 2)
        scale = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / D + eps)[:, None]
        q_low, q_high = tl.load(q_norm + d).to(tl.float32), tl.load(q_norm + D // 2 + d).to(tl.float32)
        k_low, k_high = tl.load(k_norm + d).to(tl.float32), tl.load(k_norm + D // 2 + d).to(tl.float32)
        low *= scale * tl.where(is_q[:, None], q_low[None, :], k_low[None, :])
        high *= scale * tl.where(is_q[:, None], q_high[None, :], k_high[None, :])
    return low, high


# As `_prepare`, for heads that are rotated as a whole: every value is read once, with its partner in the same thread.
@triton.jit
def _prepare_whole(
    qkv, out, k_pool, v_pool, slots, positions, angles, q_norm, k_norm, eps, k_inverse, v_inverse,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr,
    FORMAT: tl.constexpr, CONVERTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    begin(PDL)
    HALF: tl.constexpr = D // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, HALF)
    is_q, is_kv = (head < HEADS), head < HEADS + 2 * KV_HEADS
    is_k = ((head >= HEADS) & (head < HEADS + KV_HEADS))[:, None]
    is_v = (is_kv & (head >= HEADS + KV_HEADS))[:, None]
    base = qkv + (token * (HEADS + 2 * KV_HEADS) + head)[:, None] * D + d[None, :]
    raw_low = tl.load(base, mask=is_kv[:, None], other=0.0)
    raw_high = tl.load(base + HALF, mask=is_kv[:, None], other=0.0)
    angle = angles + tl.load(positions + token) * D + d
    cos, sin = tl.load(angle)[None, :], tl.load(angle + HALF)[None, :]
    slot = (tl.load(slots + token) * KV_HEADS - HEADS + head)[:, None] * D + d[None, :]
    low, high = _normed(raw_low.to(tl.float32), raw_high.to(tl.float32), is_q, q_norm, k_norm, eps, D, NORM)
    # In the dtype of queries first, as the definition has it.
    turned_low = (low * cos - high * sin).to(qkv.dtype.element_ty)
    turned_high = (high * cos + low * sin).to(qkv.dtype.element_ty)
    queries = out + (token * HEADS + head)[:, None] * D + d[None, :]
    tl.store(queries, turned_low, mask=is_q[:, None])
    tl.store(queries + HALF, turned_high, mask=is_q[:, None])
    tl.store(k_pool + slot, narrowed(turned_low.to(tl.float32), k_inverse, k_pool, FORMAT, CONVERTS), mask=is_k)
    tl.store(k_pool + slot + HALF, narrowed(turned_high.to(tl.float32), k_inverse, k_pool, FORMAT, CONVERTS), mask=is_k)
    slot -= KV_HEADS * D
    tl.store(v_pool + slot, narrowed(raw_low.to(tl.float32), v_inverse, v_pool, FORMAT, CONVERTS), mask=is_v)
    tl.store(v_pool + slot + HALF, narrowed(raw_high.to(tl.float32), v_inverse, v_pool, FORMAT, CONVERTS), mask=is_v)


@provide("triton", prepare, batch_invariant=True)
def triton_prepare(qkv: Tensor, weights: HeadWeights, pages: KVPages, step: StepInputs, spec: AttentionSpec) -> Tensor:
    """See `prepare`."""
    tokens, dim = qkv.shape[0], next_power_of_2(spec.head_dim)
    out = torch.empty(tokens, spec.heads, spec.head_dim, dtype=qkv.dtype, device=qkv.device)
    if not tokens:
        return out
    (k_pool, v_pool, form), (k_scale, v_scale) = kept(pages), scales(pages)
    given = (
        qkv.contiguous(), out, k_pool, v_pool, step.groups[pages.group].slots, step.positions, weights.table,
        weights.q_norm, weights.k_norm, spec.norm_eps or 0.0, 1.0 / k_scale, 1.0 / v_scale,
    )  # fmt: skip
    sizes = {"HEADS": spec.heads, "KV_HEADS": spec.kv_heads, "D": spec.head_dim, "NORM": spec.norm_eps is not None}
    launch = {"num_warps": 4, **form, **device_of(qkv.device).options}
    if spec.rotary_dim == spec.head_dim == dim:
        block = max(1, min(next_power_of_2(sum(spec.parts)), 2048 // dim))
        _prepare_whole[(tokens, cdiv(sum(spec.parts), block))](*given, **sizes, BLOCK=block, **launch)
    else:
        block = max(1, 1024 // dim)
        grid = (tokens, cdiv(sum(spec.parts), block))
        _prepare[grid](*given, **sizes, DP=dim, BLOCK=block, ROTARY=spec.rotary_dim, **launch)
    return out
