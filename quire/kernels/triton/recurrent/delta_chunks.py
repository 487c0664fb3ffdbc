"""The gated delta rule by chunks of tokens.

Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024, section 3.2, with decay
as in "Gated Delta Networks". `_solve` finds what a chunk's tokens would add to an empty state and what they read of the
one before (both from the inverse of a triangular matrix), `_walk` takes the state from chunk to chunk, `_read` makes
results of the states that it left behind.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.recurrent.chunks import CHUNK, block_of, chunks_of, left_of, softplus, times
from quire.ops.delta import KEY_EPS, DeltaSpec
from quire.ops.recurrent import StatePages
from quire.ops.step import StepInputs


@dataclass(frozen=True, slots=True)
class Tiles:
    """Values of a head that one block takes, and its warps: in `_solve` (all values), in `_walk` and in `_read`."""

    solve_warps: int = 4
    walk: int = 32
    walk_warps: int = 4
    read: int = 64
    read_warps: int = 4


TILES = Tiles()


@triton.jit
def _unit(x, EPS: tl.constexpr):
    return x * tl.rsqrt(tl.sum(x * x, axis=1) + EPS)[:, None]


@triton.jit
def _decay(gates, at, head, a_log, dt_bias, heads: tl.constexpr, real):
    """Logarithms of decay of some tokens, 0 where there is none."""
    slack = tl.load(gates + at + heads + head, mask=real, other=0.0).to(tl.float32) + tl.load(dt_bias + head)
    return tl.where(real, -tl.exp(tl.load(a_log + head)) * softplus(slack), 0.0)


@triton.jit(do_not_specialize=["gates_stride", "sequences"])
def _solve(
    qkv,  # (tokens, 2 * key_heads * KEY + heads * VALUE)
    gates,  # (tokens, 2 * heads), rows gates_stride apart
    a_log,
    dt_bias,
    owner,  # (chunks,) int32
    first,  # (sequences,) int32
    starts,  # (sequences + 1,) int32
    added,  # (chunks, heads, CHUNK, VALUE): what tokens would add
    reads,  # (chunks, heads, CHUNK, KEY): what they read of the state before
    gates_stride,
    sequences,
    EPS: tl.constexpr,
    key_heads: tl.constexpr,
    heads: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
):
    chunk, head = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(owner + chunk)
    if sequence >= sequences:
        return
    row = tl.arange(0, CHUNK)
    t = tl.load(starts + sequence) + (chunk - tl.load(first + sequence)) * CHUNK + row
    real = t < tl.load(starts + sequence + 1)
    t = t.to(tl.int64)
    k_at, v_at = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    rate = 1.0 / (1.0 + tl.exp(-tl.load(gates + t * gates_stride + head, mask=real, other=0.0).to(tl.float32)))
    rate = tl.where(real, rate, 0.0)
    total = tl.cumsum(_decay(gates, t * gates_stride, head, a_log, dt_bias, heads, real), axis=0)
    width: tl.constexpr = 2 * key_heads * KEY + heads * VALUE
    where = t[:, None] * width + key_heads * KEY + head // (heads // key_heads) * KEY + k_at[None, :]
    k = _unit(tl.load(qkv + where, mask=real[:, None] & (k_at < KEY)[None, :], other=0.0).to(tl.float32), EPS)
    weighed = k * rate[:, None]
    kind = qkv.dtype.element_ty
    below = row[:, None] > row[None, :]
    # The inverse of 1 + L, L strictly below the diagonal, row by row; its rows begin as those of -L.
    rows = tl.where(below, -times(weighed.to(kind), tl.trans(k.to(kind))) * left_of(total, CHUNK), 0.0)
    for i in range(1, CHUNK):
        mine = row == i
        this = tl.sum(tl.where(mine[:, None], rows, 0.0), axis=0)
        this += tl.sum(this[:, None] * rows, axis=0)
        rows = tl.where(mine[:, None], this[None, :], rows)
    inverse = tl.where(row[:, None] == row[None, :], 1.0, rows).to(kind)
    base = (chunk * heads + head).to(tl.int64) * CHUNK
    made = times(inverse, (weighed * tl.exp(total)[:, None]).to(kind))
    here = (base + row)[:, None]
    tl.store(reads + here * KEY + k_at[None, :], made.to(kind), mask=(k_at < KEY)[None, :])
    where = t[:, None] * width + 2 * key_heads * KEY + head * VALUE + v_at[None, :]
    v = tl.load(qkv + where, mask=real[:, None] & (v_at < VALUE)[None, :], other=0.0).to(tl.float32)
    made = times(inverse, (v * rate[:, None]).to(kind))
    tl.store(added + here * VALUE + v_at[None, :], made.to(kind), mask=(v_at < VALUE)[None, :])


@triton.jit(do_not_specialize=["gates_stride", "sequences"])
def _walk(
    qkv,
    gates,
    a_log,
    dt_bias,
    state,  # (pages, heads, KEY, VALUE)
    slots,  # (3, sequences) int32
    first,
    counts,  # (sequences,) int32
    starts,
    added,  # becomes what tokens really add
    reads,
    before,  # (chunks, heads, KEY, VALUE): the state at the beginning of each chunk
    gates_stride,
    sequences,
    EPS: tl.constexpr,
    key_heads: tl.constexpr,
    heads: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
):
    i, head = tl.program_id(0), tl.program_id(1)
    row, k_at = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    v_at = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    k_in, v_in = k_at < KEY, v_at < VALUE
    inside = k_in[:, None] & v_in[None, :]
    tile = k_at[:, None] * VALUE + v_at[None, :]
    known = tl.load(slots + 2 * sequences + i) == 0
    begin = (tl.load(slots + i).to(tl.int64) * heads + head) * KEY * VALUE
    s = tl.load(state + begin + tile, mask=inside & known, other=0.0)
    start, end = tl.load(starts + i), tl.load(starts + i + 1)
    width: tl.constexpr = 2 * key_heads * KEY + heads * VALUE
    shared = key_heads * KEY + head // (heads // key_heads) * KEY
    kind = qkv.dtype.element_ty
    chunks, at = tl.load(counts + i), tl.load(first + i)
    for c in range(chunks):
        base = ((at + c) * heads + head).to(tl.int64)
        narrow = s.to(kind)
        tl.store(before + base * KEY * VALUE + tile, narrow, mask=inside)
        t = start + c * CHUNK + row
        real = t < end
        t = t.to(tl.int64)
        total = tl.cumsum(_decay(gates, t * gates_stride, head, a_log, dt_bias, heads, real), axis=0)
        last = tl.sum(tl.where(row == CHUNK - 1, total, 0.0))
        here = (base * CHUNK + row)[:, None]
        w = tl.load(reads + here * KEY + k_at[None, :], mask=k_in[None, :], other=0.0)
        u = tl.load(added + here * VALUE + v_at[None, :], mask=v_in[None, :], other=0.0).to(tl.float32)
        change = (u - times(w, narrow)).to(kind)
        tl.store(added + here * VALUE + v_at[None, :], change, mask=v_in[None, :])
        where = t[:, None] * width + shared + k_at[None, :]
        k = _unit(tl.load(qkv + where, mask=real[:, None] & k_in[None, :], other=0.0).to(tl.float32), EPS)
        k = (k * tl.exp(last - total)[:, None]).to(kind)
        s = s * tl.exp(last) + times(tl.trans(k), change)
    finish = (tl.load(slots + sequences + i).to(tl.int64) * heads + head) * KEY * VALUE
    tl.store(state + finish + tile, s, mask=inside)


@triton.jit(do_not_specialize=["gates_stride", "sequences"])
def _read(
    qkv,
    gates,
    a_log,
    dt_bias,
    owner,
    first,
    starts,
    added,
    before,
    out,  # (tokens, heads * VALUE)
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
    CHUNK: tl.constexpr,
):
    chunk, head = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(owner + chunk)
    if sequence >= sequences:
        return
    row, k_at = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    v_at = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    k_in, v_in = k_at < KEY, v_at < VALUE
    t = tl.load(starts + sequence) + (chunk - tl.load(first + sequence)) * CHUNK + row
    real = t < tl.load(starts + sequence + 1)
    t = t.to(tl.int64)
    total = tl.cumsum(_decay(gates, t * gates_stride, head, a_log, dt_bias, heads, real), axis=0)
    width: tl.constexpr = 2 * key_heads * KEY + heads * VALUE
    where = t[:, None] * width + head // (heads // key_heads) * KEY + k_at[None, :]
    mask = real[:, None] & k_in[None, :]
    kind = qkv.dtype.element_ty
    q = _unit(tl.load(qkv + where, mask=mask, other=0.0).to(tl.float32), EPS) * scale
    k = _unit(tl.load(qkv + where + key_heads * KEY, mask=mask, other=0.0).to(tl.float32), EPS).to(kind)
    within = (times(q.to(kind), tl.trans(k)) * left_of(total, CHUNK)).to(kind)
    base = (chunk * heads + head).to(tl.int64)
    here = (base * CHUNK + row)[:, None]
    change = tl.load(added + here * VALUE + v_at[None, :], mask=v_in[None, :], other=0.0)
    tile = k_at[:, None] * VALUE + v_at[None, :]
    s = tl.load(before + base * KEY * VALUE + tile, mask=k_in[:, None] & v_in[None, :], other=0.0)
    made = times((q * tl.exp(total)[:, None]).to(kind), s) + times(within, change)
    place = (t[:, None] * heads + head) * VALUE + v_at[None, :]
    tl.store(out + place, made.to(out.dtype.element_ty), mask=real[:, None] & v_in[None, :])


def by_chunks(inputs: tuple[Tensor, ...], pages: StatePages, out: Tensor, step: StepInputs, spec: DeltaSpec) -> None:
    """Fill `out`, (tokens, heads * value_dim), and move states on.

    Args:
        inputs: of `gated_delta_rule`: qkv (contiguous), gates, a_log, dt_bias.
    """
    chunks, sequences = chunks_of(step, pages.group), len(step.seq_lens)
    qkv, gates = inputs[:2]
    heads, key, value = spec.value_heads, spec.key_dim, spec.value_dim

    def scratch(*shape: int) -> Tensor:
        return torch.empty(chunks.room, heads, *shape, dtype=qkv.dtype, device=qkv.device)

    added, reads, before = scratch(CHUNK, value), scratch(CHUNK, key), scratch(key, value)
    sizes: tuple[Any, ...] = (KEY_EPS, spec.key_heads, heads, key, value, block_of(key))
    places, ends = (chunks.owner, chunks.first, step.query_start), (gates.stride(0), sequences)
    _solve[(chunks.room, heads)](
        *inputs, *places, added, reads, *ends, *sizes, block_of(value), CHUNK, num_warps=TILES.solve_warps
    )
    block = min(TILES.walk, block_of(value))
    _walk[(sequences, heads, triton.cdiv(value, block))](
        *inputs,
        pages.state,
        chunks.slots,
        chunks.first,
        chunks.counts,
        step.query_start,
        added,
        reads,
        before,
        *ends,
        *sizes,
        block,
        CHUNK,
        num_warps=TILES.walk_warps,
    )
    block = min(TILES.read, block_of(value))
    _read[(chunks.room, heads, triton.cdiv(value, block))](
        *inputs,
        *places,
        added,
        before,
        out,
        *ends,
        key**-0.5,
        *sizes,
        block,
        CHUNK,
        num_warps=TILES.read_warps,
    )
