"""Mamba's scan. One token a sequence: every state read and written once. Longer: by chunks of tokens.

Dao and Gu, "Transformers are SSMs", 2024, section 6: `_measure` finds the time steps of all chunks, `_walk` goes from
chunk to chunk, moves the state on and makes results of it and of a chunk's own tokens.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import cdiv, device_of
from quire.kernels.triton.recurrent.chunks import (
    CHUNK,
    beside,
    block_of,
    chunks_of,
    left_of,
    pages_of,
    product,
    slots_of,
    softplus,
    stages_for,
    tokens_of,
)
from quire.ops.recurrent import StatePages
from quire.ops.registry import provide
from quire.ops.ssd import ScanSpec, ScanWeights, ssd_scan
from quire.ops.step import StepInputs

LARGEST = 128
"""Values of a head, or of a state for each of them: tiles of more do not fit."""
HEADS = 16
"""Whose time steps one block of `_measure` works out."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Values of a head that one block takes, and its warps: in steps of one token, and in `_walk`.

    Stages of the latter at most: where a block has a multiprocessor to itself, and where two share one.
    """

    one: int = 32
    one_warps: int = 4
    walk: int = 64
    walk_warps: int = 4
    walk_stages: int = 3
    shared_stages: int = 2


TILES = Tiles()


@triton.jit
def _time(said, bias, low: tl.constexpr, high: tl.constexpr):
    """Time steps of what tokens say of them."""
    return tl.minimum(tl.maximum(softplus(said.to(tl.float32) + bias), low), high)


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
    begin, end, known = pages_of(slots, i, sequences)
    s = tl.load(state + (begin * heads + head) * HEAD * STATE + tile, mask=inside & known, other=0.0)
    row = xbc + i.to(tl.int64) * (heads * HEAD + 2 * groups * STATE)
    shared = heads * HEAD + head // (heads // groups) * STATE
    x = tl.load(row + head * HEAD + h_at, mask=h_in, other=0.0).to(tl.float32)
    writes = tl.load(row + shared + s_at, mask=s_in, other=0.0).to(tl.float32)
    reads = tl.load(row + shared + groups * STATE + s_at, mask=s_in, other=0.0).to(tl.float32)
    time = _time(tl.load(dt + i.to(tl.int64) * dt_stride + head), tl.load(dt_bias + head), low, high)
    s = s * tl.exp(-tl.exp(tl.load(a_log + head)) * time) + (time * x)[:, None] * writes[None, :]
    tl.store(state + (end * heads + head) * HEAD * STATE + tile, s, mask=inside)
    made = tl.sum(s * reads[None, :], axis=1) + tl.load(skip + head) * x
    tl.store(out + (i.to(tl.int64) * heads + head) * HEAD + h_at, made.to(out.dtype.element_ty), mask=h_in)


@triton.jit(do_not_specialize=["dt_stride", "sequences"])
def _measure(
    dt,
    a_log,
    dt_bias,
    owner,  # (chunks,) int32
    first,  # (sequences,) int32
    starts,  # (sequences + 1,) int32
    times,  # (chunks, heads, CHUNK) float32
    totals,  # (chunks, heads, CHUNK) float32: logarithms of decay since the chunk's beginning
    dt_stride,
    sequences,
    low: tl.constexpr,
    high: tl.constexpr,
    heads: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    chunk, row = tl.program_id(0), tl.arange(0, CHUNK)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sequence = tl.load(owner + chunk)
    if sequence >= sequences:
        return
    t, real = tokens_of(chunk, sequence, first, starts, CHUNK)
    real = real[:, None] & (head < heads)[None, :]
    bias = tl.load(dt_bias + head, mask=head < heads, other=0.0)
    said = tl.load(dt + t[:, None] * dt_stride + head[None, :], mask=real, other=0.0)
    time = tl.where(real, _time(said, bias[None, :], low, high), 0.0)
    speed = -tl.exp(tl.load(a_log + head, mask=head < heads, other=0.0))
    place = (chunk.to(tl.int64) * heads + head[None, :]) * CHUNK + row[:, None]
    tl.store(times + place, time, mask=(head < heads)[None, :])
    tl.store(totals + place, tl.cumsum(time * speed[None, :], axis=0), mask=(head < heads)[None, :])


@triton.jit(do_not_specialize=["sequences"])
def _walk(
    xbc,
    skip,
    state,
    slots,
    first,
    counts,  # (sequences,) int32
    starts,
    times,
    totals,
    out,  # (tokens, heads * HEAD)
    sequences,
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
    # Turned round: so its products need neither states nor tokens to be transposed in registers.
    inside = s_in[:, None] & h_in[None, :]
    tile = s_at[:, None] + h_at[None, :] * STATE
    begin, finish, known = pages_of(slots, i, sequences)
    s = tl.load(state + (begin * heads + head) * HEAD * STATE + tile, mask=inside & known, other=0.0)
    start, end = tl.load(starts + i), tl.load(starts + i + 1)
    width: tl.constexpr = heads * HEAD + 2 * groups * STATE
    shared = heads * HEAD + head // (heads // groups) * STATE
    past = tl.load(skip + head)
    kind = xbc.dtype.element_ty
    chunks, at = tl.load(counts + i), tl.load(first + i)
    wide = row[:, None] * width
    for c in range(chunks):
        token = start + c * CHUNK
        real = row < end - token
        line = xbc + token.to(tl.int64) * width
        mask = real[:, None] & s_in[None, :]
        writes = tl.load(line + shared + wide + s_at[None, :], mask=mask, other=0.0)
        reads = tl.load(line + (shared + groups * STATE) + wide + s_at[None, :], mask=mask, other=0.0)
        mask = real[:, None] & h_in[None, :]
        x = tl.load(line + head * HEAD + wide + h_at[None, :], mask=mask, other=0.0)
        base = ((at + c) * heads + head).to(tl.int64) * CHUNK
        time, total = tl.load(times + base + row), tl.load(totals + base + row)
        last = tl.load(totals + base + CHUNK - 1)
        within = product(reads, tl.trans(writes)) * left_of(total, CHUNK) * time[None, :]
        made = product(reads, s.to(kind)) * tl.exp(total)[:, None] + product(within.to(kind), x)
        made += past * x.to(tl.float32)
        place = out + (token.to(tl.int64) * heads + head) * HEAD
        tl.store(place + row[:, None] * (heads * HEAD) + h_at[None, :], made.to(out.dtype.element_ty), mask=mask)
        x = (x.to(tl.float32) * (time * tl.exp(last - total))[:, None]).to(kind)
        s = s * tl.exp(last) + product(tl.trans(writes), x)
    tl.store(state + (finish * heads + head) * HEAD * STATE + tile, s, mask=inside)


def _refuses(spec: ScanSpec) -> str | None:
    return f"heads or states of more than {LARGEST} values" if max(spec.head_dim, spec.state) > LARGEST else None


@provide("triton", ssd_scan, _refuses)
def triton_ssd_scan(
    xbc: Tensor, dt: Tensor, weights: ScanWeights, pages: StatePages, step: StepInputs, spec: ScanSpec
) -> Tensor:
    """See `ssd_scan`."""
    tokens, heads, xbc = len(xbc), spec.heads, xbc.contiguous()
    out = torch.empty(tokens, heads * spec.head_dim, dtype=xbc.dtype, device=xbc.device)
    if not tokens:
        return out
    if step.max_query > 1:
        _by_chunks((xbc, dt, weights), pages, out, step, spec)
        return out
    block = min(TILES.one, block_of(spec.head_dim))
    _one[(tokens * heads, cdiv(spec.head_dim, block))](
        xbc,
        dt,
        weights.a_log,
        weights.skip,
        weights.dt_bias,
        pages.state,
        slots_of(step, pages.group),
        out,
        dt.stride(0),
        len(step.seq_lens),
        spec.shortest,
        spec.longest,
        *_sizes(spec),
        block,
        num_warps=TILES.one_warps,
    )
    return out


def _sizes(spec: ScanSpec) -> tuple[int, ...]:
    return spec.heads, spec.groups, spec.head_dim, spec.state, block_of(spec.state)


def _by_chunks(
    inputs: tuple[Tensor, Tensor, ScanWeights], pages: StatePages, out: Tensor, step: StepInputs, spec: ScanSpec
) -> None:
    """Fill `out`, and move states on; `inputs` are the op's first, xbc contiguous."""
    chunks, sequences, heads = chunks_of(step, pages.group), len(step.seq_lens), spec.heads
    xbc, dt, weights = inputs
    times, totals = torch.empty(2, chunks.room, heads, CHUNK, dtype=torch.float32, device=xbc.device)
    _measure[(chunks.room, cdiv(heads, HEADS))](
        dt,
        weights.a_log,
        weights.dt_bias,
        chunks.owner,
        chunks.first,
        step.query_start,
        times,
        totals,
        dt.stride(0),
        sequences,
        spec.shortest,
        spec.longest,
        heads,
        HEADS,
        CHUNK,
        num_warps=4,
    )
    block = min(TILES.walk, block_of(spec.head_dim))
    blocks, turn = cdiv(spec.head_dim, block), CHUNK * (2 * block_of(spec.state) + block) * xbc.itemsize
    shared = block == TILES.walk and beside(step) * heads * blocks > device_of(xbc.device).processors
    _walk[(sequences, heads, blocks)](
        xbc,
        weights.skip,
        pages.state,
        chunks.slots,
        chunks.first,
        chunks.counts,
        step.query_start,
        times,
        totals,
        out,
        sequences,
        *_sizes(spec),
        block,
        CHUNK,
        num_warps=TILES.walk_warps,
        num_stages=stages_for(turn, TILES.shared_stages if shared else TILES.walk_stages, xbc.device),
    )
