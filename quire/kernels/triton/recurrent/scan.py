"""Mamba's scan. One token a sequence: every state read and written once. Longer: two kernels over chunks.

Dao and Gu, "Transformers are SSMs", 2024, section 6: `_walk` takes the state from chunk to chunk, `_read` makes results
of the states that it left behind and of a chunk's own tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.recurrent.chunks import (
    CHUNK,
    block_of,
    chunks_of,
    left_of,
    slots_of,
    softplus,
    stages_for,
    times,
)
from quire.ops.recurrent import StatePages
from quire.ops.registry import provide
from quire.ops.ssd import ScanSpec, ScanWeights, ssd_scan
from quire.ops.step import StepInputs

LARGEST = 256
"""Values of a head, or of a state for each of them: tiles of more do not fit."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Values of a head that one block takes, and its warps: in steps of one token, in `_walk` and in `_read`."""

    one: int = 32
    one_warps: int = 4
    walk: int = 64
    walk_warps: int = 4
    read: int = 64
    read_warps: int = 4


TILES = Tiles()


@triton.jit
def _time(dt, at, head, dt_bias, low: tl.constexpr, high: tl.constexpr, real):
    """Time steps of some tokens, 0 where there is none."""
    time = softplus(tl.load(dt + at + head, mask=real, other=0.0).to(tl.float32) + tl.load(dt_bias + head))
    return tl.where(real, tl.minimum(tl.maximum(time, low), high), 0.0)


@triton.jit(do_not_specialize=["dt_stride", "sequences"])
def _one(
    xbc,  # (sequences, heads * HEAD + 2 * groups * STATE)
    dt,  # (sequences, heads), rows dt_stride apart
    a_log,
    skip,
    dt_bias,
    state,  # (pages, heads, HEAD, STATE)
    slots,  # (3, sequences) int32
    out,  # (sequences, heads * HEAD)
    dt_stride,
    sequences,
    low: tl.constexpr,
    high: tl.constexpr,
    heads: tl.constexpr,
    groups: tl.constexpr,
    HEAD: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    i, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    h_at, s_at = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_S)
    h_in, s_in = h_at < HEAD, s_at < STATE
    inside = h_in[:, None] & s_in[None, :]
    tile = h_at[:, None] * STATE + s_at[None, :]
    known = tl.load(slots + 2 * sequences + i) == 0
    begin = (tl.load(slots + i).to(tl.int64) * heads + head) * HEAD * STATE
    s = tl.load(state + begin + tile, mask=inside & known, other=0.0)
    row = xbc + i.to(tl.int64) * (heads * HEAD + 2 * groups * STATE)
    shared = heads * HEAD + head // (heads // groups) * STATE
    x = tl.load(row + head * HEAD + h_at, mask=h_in, other=0.0).to(tl.float32)
    writes = tl.load(row + shared + s_at, mask=s_in, other=0.0).to(tl.float32)
    reads = tl.load(row + shared + groups * STATE + s_at, mask=s_in, other=0.0).to(tl.float32)
    time = softplus(tl.load(dt + i.to(tl.int64) * dt_stride + head).to(tl.float32) + tl.load(dt_bias + head))
    time = tl.minimum(tl.maximum(time, low), high)
    s = s * tl.exp(-tl.exp(tl.load(a_log + head)) * time) + (time * x)[:, None] * writes[None, :]
    end = (tl.load(slots + sequences + i).to(tl.int64) * heads + head) * HEAD * STATE
    tl.store(state + end + tile, s, mask=inside)
    made = tl.sum(s * reads[None, :], axis=1) + tl.load(skip + head) * x
    tl.store(out + (i.to(tl.int64) * heads + head) * HEAD + h_at, made.to(out.dtype.element_ty), mask=h_in)


@triton.jit(do_not_specialize=["dt_stride", "sequences"])
def _walk(
    xbc,
    dt,
    a_log,
    skip,
    dt_bias,
    state,
    slots,
    first,
    counts,
    starts,
    before,  # (chunks, heads, HEAD, STATE): the state at the beginning of each chunk
    dt_stride,
    sequences,
    low: tl.constexpr,
    high: tl.constexpr,
    heads: tl.constexpr,
    groups: tl.constexpr,
    HEAD: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    CHUNK: tl.constexpr,
):
    i, head = tl.program_id(0), tl.program_id(1)
    row, s_at = tl.arange(0, CHUNK), tl.arange(0, BLOCK_S)
    h_at = tl.program_id(2) * BLOCK_H + tl.arange(0, BLOCK_H)
    h_in, s_in = h_at < HEAD, s_at < STATE
    inside = h_in[:, None] & s_in[None, :]
    tile = h_at[:, None] * STATE + s_at[None, :]
    known = tl.load(slots + 2 * sequences + i) == 0
    begin = (tl.load(slots + i).to(tl.int64) * heads + head) * HEAD * STATE
    s = tl.load(state + begin + tile, mask=inside & known, other=0.0)
    start, end = tl.load(starts + i), tl.load(starts + i + 1)
    width: tl.constexpr = heads * HEAD + 2 * groups * STATE
    shared = heads * HEAD + head // (heads // groups) * STATE
    speed = -tl.exp(tl.load(a_log + head))
    kind = xbc.dtype.element_ty
    chunks, at = tl.load(counts + i), tl.load(first + i)
    for c in range(chunks):
        base = ((at + c) * heads + head).to(tl.int64) * HEAD * STATE
        tl.store(before + base + tile, s.to(kind), mask=inside)
        t = start + c * CHUNK + row
        real = t < end
        t = t.to(tl.int64)
        time = _time(dt, t * dt_stride, head, dt_bias, low, high, real)
        total = tl.cumsum(time * speed, axis=0)
        last = tl.sum(tl.where(row == CHUNK - 1, total, 0.0))
        where = t[:, None] * width
        x = tl.load(xbc + where + head * HEAD + h_at[None, :], mask=real[:, None] & h_in[None, :], other=0.0)
        writes = tl.load(xbc + where + shared + s_at[None, :], mask=real[:, None] & s_in[None, :], other=0.0)
        x = (x.to(tl.float32) * (time * tl.exp(last - total))[:, None]).to(kind)
        s = s * tl.exp(last) + times(tl.trans(x), writes)
    finish = (tl.load(slots + sequences + i).to(tl.int64) * heads + head) * HEAD * STATE
    tl.store(state + finish + tile, s, mask=inside)


@triton.jit(do_not_specialize=["dt_stride", "sequences"])
def _read(
    xbc,
    dt,
    a_log,
    skip,
    dt_bias,
    owner,
    first,
    starts,
    before,
    out,  # (tokens, heads * HEAD)
    dt_stride,
    sequences,
    low: tl.constexpr,
    high: tl.constexpr,
    heads: tl.constexpr,
    groups: tl.constexpr,
    HEAD: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    CHUNK: tl.constexpr,
):
    chunk, head = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(owner + chunk)
    if sequence >= sequences:
        return
    row, s_at = tl.arange(0, CHUNK), tl.arange(0, BLOCK_S)
    h_at = tl.program_id(2) * BLOCK_H + tl.arange(0, BLOCK_H)
    h_in, s_in = h_at < HEAD, s_at < STATE
    t = tl.load(starts + sequence) + (chunk - tl.load(first + sequence)) * CHUNK + row
    real = t < tl.load(starts + sequence + 1)
    t = t.to(tl.int64)
    time = _time(dt, t * dt_stride, head, dt_bias, low, high, real)
    total = tl.cumsum(time * -tl.exp(tl.load(a_log + head)), axis=0)
    width: tl.constexpr = heads * HEAD + 2 * groups * STATE
    where = t[:, None] * width + heads * HEAD + head // (heads // groups) * STATE + s_at[None, :]
    mask = real[:, None] & s_in[None, :]
    writes = tl.load(xbc + where, mask=mask, other=0.0)
    reads = tl.load(xbc + where + groups * STATE, mask=mask, other=0.0)
    kind = xbc.dtype.element_ty
    within = times(reads, tl.trans(writes)) * left_of(total, CHUNK) * time[None, :]
    place = t[:, None] * width + head * HEAD + h_at[None, :]
    x = tl.load(xbc + place, mask=real[:, None] & h_in[None, :], other=0.0)
    base = (chunk * heads + head).to(tl.int64) * HEAD * STATE
    tile = h_at[:, None] * STATE + s_at[None, :]
    s = tl.load(before + base + tile, mask=h_in[:, None] & s_in[None, :], other=0.0)
    made = times((reads.to(tl.float32) * tl.exp(total)[:, None]).to(kind), tl.trans(s)) + times(within.to(kind), x)
    made += tl.load(skip + head) * x.to(tl.float32)
    place = (t[:, None] * heads + head) * HEAD + h_at[None, :]
    tl.store(out + place, made.to(out.dtype.element_ty), mask=real[:, None] & h_in[None, :])


def _refuses(spec: ScanSpec) -> str | None:
    return f"heads or states of more than {LARGEST} values" if max(spec.head_dim, spec.state) > LARGEST else None


@provide("triton", ssd_scan, _refuses)
def triton_ssd_scan(
    xbc: Tensor, dt: Tensor, weights: ScanWeights, pages: StatePages, step: StepInputs, spec: ScanSpec
) -> Tensor:
    """See `ssd_scan`."""
    tokens, heads, sequences = len(xbc), spec.heads, len(step.seq_lens)
    out = torch.empty(tokens, heads * spec.head_dim, dtype=xbc.dtype, device=xbc.device)
    if not tokens:
        return out
    inputs = xbc.contiguous(), dt, weights.a_log, weights.skip, weights.dt_bias
    sizes: tuple[Any, ...] = (spec.shortest, spec.longest, heads, spec.groups, spec.head_dim, spec.state)
    rest = (dt.stride(0), sequences, *sizes, block_of(spec.state))
    largest = block_of(spec.head_dim)
    if step.max_query == 1:
        block = min(TILES.one, largest)
        grid = tokens * heads, triton.cdiv(spec.head_dim, block)
        slots = slots_of(step, pages.group)
        _one[grid](*inputs, pages.state, slots, out, *rest, block, num_warps=TILES.one_warps)
        return out
    chunks = chunks_of(step, pages.group)
    shape = chunks.room, heads, spec.head_dim, spec.state
    before = torch.empty(shape, dtype=xbc.dtype, device=xbc.device)
    block = min(TILES.walk, largest)
    _walk[(sequences, heads, triton.cdiv(spec.head_dim, block))](
        *inputs,
        pages.state,
        chunks.slots,
        chunks.first,
        chunks.counts,
        step.query_start,
        before,
        *rest,
        block,
        CHUNK,
        num_warps=TILES.walk_warps,
        num_stages=stages_for(CHUNK * (spec.state + block) * xbc.itemsize, xbc.device),
    )
    block = min(TILES.read, largest)
    _read[(chunks.room, heads, triton.cdiv(spec.head_dim, block))](
        *inputs,
        chunks.owner,
        chunks.first,
        step.query_start,
        before,
        out,
        *rest,
        block,
        CHUNK,
        num_warps=TILES.read_warps,
    )
    return out
