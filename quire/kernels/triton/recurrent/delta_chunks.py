"""The gated delta rule by chunks of tokens.

Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024, section 3.2, with decay
as in "Gated Delta Networks". `_solve` works out for all chunks at once what needs no state: the inverse of a triangular
matrix, by which a chunk's tokens correct each other, and what they read of each other. `_walk` goes from chunk to
chunk, moves the state on and makes results. Keys and queries are taken as they are: what they are divided by is applied
to what their products give.
"""

from dataclasses import dataclass
from typing import Any

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
    softplus,
    stages_for,
    tokens_of,
)
from quire.ops.delta import KEY_EPS, DeltaSpec
from quire.ops.recurrent import StatePages
from quire.ops.step import StepInputs

SOLVED = 16
"""Rows of a chunk that are solved one after another; a chunk has four times as many at most."""
FACTORS = 4
"""For each token: what its read of the state is multiplied with where values are corrected by it, its learning rate,
what its key is multiplied with where it writes, and its query where it reads."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Warps of a block of `_solve`; values of a head that a block of `_walk` takes, where all of these run at once and
    where they do not; its warps, its stages at most."""

    solve_warps: int = 4
    walk: int = 32
    wide: int = 64
    walk_warps: int = 4
    walk_stages: int = 3


TILES = Tiles()
WIDE_KEY, WIDE_SHARED = 128, 200 << 10
"""Wide blocks are for states whose keys have no more values, which registers hold beside the rest, and for GPUs with at
least so many bytes of shared memory, as Hopper has them."""


@triton.jit
def _over_length(x, EPS: tl.constexpr):
    return tl.rsqrt(tl.sum(x * x, axis=1) + EPS)


@triton.jit
def _inverse(lower, CHUNK: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """Of 1 + lower, which is 0 on the diagonal and above: row by row within blocks, by products across them."""
    blocks: tl.constexpr = CHUNK // BLOCK
    number, at, row = tl.arange(0, blocks), tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    mine = number[:, None, None, None] == number[None, None, :, None]
    rows = -tl.sum(tl.where(mine, tl.reshape(lower, (blocks, BLOCK, blocks, BLOCK)), 0.0), axis=2)
    for i in range(1, BLOCK):
        here = (at == i)[None, :, None]
        this = tl.sum(tl.where(here, rows, 0.0), axis=1)
        this += tl.sum(this[:, :, None] * rows, axis=1)
        rows = tl.where(here, this[:, None, :], rows)
    rows = tl.where((at[:, None] == at[None, :])[None, :, :], 1.0, rows)
    within = tl.reshape(tl.where(mine, rows[:, :, None, :], 0.0), (CHUNK, CHUNK))
    across = tl.where(row[:, None] // BLOCK == row[None, :] // BLOCK, 0.0, lower)
    one = tl.where(row[:, None] == row[None, :], 1.0, 0.0)
    # 1 + lower = within^-1 (1 + m), and m^4 = 0 with four blocks: (1 + m)^-1 = (1 - m)(1 + m^2).
    m = tl.dot(within, across, input_precision=PRECISION)
    outer = tl.dot(one - m, one + tl.dot(m, m, input_precision=PRECISION), input_precision=PRECISION)
    return tl.dot(outer, within, input_precision=PRECISION)


@triton.jit(do_not_specialize=["gates_stride", "sequences"])
def _solve(
    qkv,  # (tokens, 2 * key_heads * KEY + heads * VALUE)
    gates,  # (tokens, 2 * heads), rows gates_stride apart
    a_log,
    dt_bias,
    owner,  # (chunks,) int32
    first,  # (sequences,) int32
    starts,  # (sequences + 1,) int32
    inverse,  # (chunks, heads, CHUNK, CHUNK)
    within,  # (chunks, heads, CHUNK, CHUNK): what a token (row) reads of what another (column) writes
    factors,  # (chunks, heads, FACTORS, CHUNK) float32
    rest,  # (chunks, heads) float32: what is left of the state before at the chunk's end
    gates_stride,
    sequences,
    scale: tl.constexpr,
    EPS: tl.constexpr,
    key_heads: tl.constexpr,
    heads: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    FACTORS: tl.constexpr,
    SOLVED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    chunk, head = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(owner + chunk)
    if sequence >= sequences:
        return
    row, k_at = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    t, real = tokens_of(chunk, sequence, first, starts, CHUNK)
    at = t * gates_stride + head
    rate = 1.0 / (1.0 + tl.exp(-tl.load(gates + at, mask=real, other=0.0).to(tl.float32)))
    rate = tl.where(real, rate, 0.0)
    slack = tl.load(gates + at + heads, mask=real, other=0.0).to(tl.float32) + tl.load(dt_bias + head)
    decay = tl.where(real, -tl.exp(tl.load(a_log + head)) * softplus(slack), 0.0)
    total = tl.cumsum(decay, axis=0)
    last = tl.sum(decay)
    width: tl.constexpr = 2 * key_heads * KEY + heads * VALUE
    where = t[:, None] * width + head // (heads // key_heads) * KEY + k_at[None, :]
    mask = real[:, None] & (k_at < KEY)[None, :]
    q = tl.load(qkv + where, mask=mask, other=0.0)
    k = tl.load(qkv + where + key_heads * KEY, mask=mask, other=0.0)
    q_over, k_over = _over_length(q.to(tl.float32), EPS) * scale, _over_length(k.to(tl.float32), EPS)
    base = (chunk * heads + head).to(tl.int64)
    tl.store(rest + base, tl.exp(last))
    place = factors + base * (FACTORS * CHUNK) + row
    tl.store(place, rate * k_over * tl.exp(total))
    tl.store(place + CHUNK, rate)
    tl.store(place + 2 * CHUNK, k_over * tl.exp(last - total))
    tl.store(place + 3 * CHUNK, q_over * tl.exp(total))
    left = left_of(total, CHUNK) * k_over[None, :]
    tile = base * (CHUNK * CHUNK) + row[:, None] * CHUNK + row[None, :]
    kind = qkv.dtype.element_ty
    tl.store(within + tile, (product(q, tl.trans(k)) * left * q_over[:, None]).to(kind))
    lower = product(k, tl.trans(k)) * left * (rate * k_over)[:, None]
    lower = tl.where(row[:, None] > row[None, :], lower, 0.0)
    tl.store(inverse + tile, _inverse(lower, CHUNK, SOLVED, PRECISION).to(kind))


@triton.jit(do_not_specialize=["sequences"])
def _walk(
    qkv,
    state,  # (pages, heads, KEY, VALUE)
    slots,  # (3, sequences) int32
    first,
    counts,  # (sequences,) int32
    starts,
    inverse,
    within,
    factors,
    rest,
    out,  # (tokens, heads * VALUE)
    sequences,
    key_heads: tl.constexpr,
    heads: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    FACTORS: tl.constexpr,
):
    i, head = tl.program_id(0), tl.program_id(1)
    row, k_at = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    v_at = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    k_in, v_in = k_at < KEY, v_at < VALUE
    inside = k_in[:, None] & v_in[None, :]
    tile = k_at[:, None] * VALUE + v_at[None, :]
    begin, finish, old = pages_of(slots, i, sequences)
    s = tl.load(state + (begin * heads + head) * KEY * VALUE + tile, mask=inside & old, other=0.0)
    start, end = tl.load(starts + i), tl.load(starts + i + 1)
    width: tl.constexpr = 2 * key_heads * KEY + heads * VALUE
    shared = head // (heads // key_heads) * KEY
    square = row[:, None] * CHUNK + row[None, :]
    kind = qkv.dtype.element_ty
    chunks, at = tl.load(counts + i), tl.load(first + i)
    wide = row[:, None] * width
    for c in range(chunks):
        base = ((at + c) * heads + head).to(tl.int64)
        token = start + c * CHUNK
        real = row < end - token
        line = qkv + token.to(tl.int64) * width
        mask = real[:, None] & k_in[None, :]
        q = tl.load(line + shared + wide + k_at[None, :], mask=mask, other=0.0)
        k = tl.load(line + (key_heads * KEY + shared) + wide + k_at[None, :], mask=mask, other=0.0)
        mask = real[:, None] & v_in[None, :]
        v = tl.load(line + (2 * key_heads * KEY + head * VALUE) + wide + v_at[None, :], mask=mask, other=0.0)
        corrects = tl.load(inverse + base * (CHUNK * CHUNK) + square)
        reads = tl.load(within + base * (CHUNK * CHUNK) + square)
        factor = factors + base * (FACTORS * CHUNK) + row
        known, rate = tl.load(factor), tl.load(factor + CHUNK)
        writes, sees = tl.load(factor + 2 * CHUNK), tl.load(factor + 3 * CHUNK)
        narrow = s.to(kind)
        wanted = v.to(tl.float32) * rate[:, None] - product(k, narrow) * known[:, None]
        change = product(corrects, wanted.to(kind))
        made = product(q, narrow) * sees[:, None] + product(reads, change.to(kind))
        place = out + (token.to(tl.int64) * heads + head) * VALUE
        tl.store(place + row[:, None] * (heads * VALUE) + v_at[None, :], made.to(out.dtype.element_ty), mask=mask)
        s = s * tl.load(rest + base) + product(tl.trans(k), (change * writes[:, None]).to(kind))
    tl.store(state + (finish * heads + head) * KEY * VALUE + tile, s, mask=inside)


def by_chunks(inputs: tuple[Tensor, ...], pages: StatePages, out: Tensor, step: StepInputs, spec: DeltaSpec) -> None:
    """Fill `out`, (tokens, heads * value_dim), and move states on.

    Args:
        inputs: of `gated_delta_rule`: qkv (contiguous), gates, a_log, dt_bias.
    """
    chunks, sequences = chunks_of(step, pages.group), len(step.seq_lens)
    qkv, gates = inputs[:2]
    heads, key, value = spec.value_heads, spec.key_dim, spec.value_dim

    def scratch(*each: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(chunks.room, heads, *each, dtype=dtype, device=qkv.device)

    inverse, within = scratch(CHUNK, CHUNK, dtype=qkv.dtype), scratch(CHUNK, CHUNK, dtype=qkv.dtype)
    factors, rest = scratch(FACTORS, CHUNK), scratch()
    sizes: tuple[Any, ...] = (spec.key_heads, heads, key, value, block_of(key))
    _solve[(chunks.room, heads)](
        *inputs,
        chunks.owner,
        chunks.first,
        step.query_start,
        inverse,
        within,
        factors,
        rest,
        gates.stride(0),
        sequences,
        key**-0.5,
        KEY_EPS,
        *sizes,
        CHUNK,
        FACTORS,
        SOLVED,
        _precision(qkv),
        num_warps=TILES.solve_warps,
    )
    block = _width(spec, beside(step) * heads, qkv)
    turn = CHUNK * (2 * block_of(key) + block + 2 * CHUNK) * qkv.itemsize
    _walk[(sequences, heads, cdiv(value, block))](
        qkv,
        pages.state,
        chunks.slots,
        chunks.first,
        chunks.counts,
        step.query_start,
        inverse,
        within,
        factors,
        rest,
        out,
        sequences,
        *sizes,
        block,
        CHUNK,
        FACTORS,
        num_warps=TILES.walk_warps,
        num_stages=stages_for(turn, TILES.walk_stages, qkv.device),
    )


def _width(spec: DeltaSpec, heads: int, x: Tensor) -> int:
    """Values of a head that a block of `_walk` takes, where so many heads go side by side.

    Narrow blocks are faster while all of them run at once. Wide ones suit Hopper's matrix units, with 2 bytes a number.
    """
    device, value = device_of(x.device), spec.value_dim
    waits = heads * cdiv(value, TILES.walk) > device.processors
    holds = device.dependent and device.shared_bytes >= WIDE_SHARED and block_of(spec.key_dim) <= WIDE_KEY
    if waits and holds and x.itemsize == 2 and value % TILES.wide == 0:
        return TILES.wide
    return min(TILES.walk, block_of(value))


def _precision(x: Tensor) -> str:
    """Of products within `_inverse`, which is rounded to the dtype of `x` afterwards."""
    if x.device.type != "cuda" or torch.version.hip is not None:
        return "ieee"
    return "tf32x3" if x.dtype == torch.float32 else "tf32"
