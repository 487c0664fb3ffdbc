"""The gated delta rule by chunks of tokens.

Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024, section 3.2, with decay
as in "Gated Delta Networks". `_solve` finds what a chunk's tokens would add to an empty state and what they read of the
one before (both from the inverse of a triangular matrix), `_walk` takes the state from chunk to chunk and does nothing
else, for it is the only one whose chunks wait for each other, `_read` makes results of the states that it left behind.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.recurrent.chunks import CHUNK, block_of, chunks_of, left_of, softplus, stages_for, times
from quire.ops.delta import KEY_EPS, DeltaSpec
from quire.ops.recurrent import StatePages
from quire.ops.step import StepInputs

SOLVED = 16
"""Rows of a chunk that are solved one after another; a chunk has four times as many at most."""


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
    added,  # (chunks, heads, CHUNK, VALUE): what tokens would add
    reads,  # (chunks, heads, CHUNK, KEY): what they read of the state before
    keys,  # (chunks, heads, CHUNK, KEY): keys, decayed to the chunk's end
    rest,  # (chunks, heads) float32: what is left of the state before at the chunk's end
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
    SOLVED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    chunk, head = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(owner + chunk)
    if sequence >= sequences:
        return
    row, k_at, v_at = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    t = tl.load(starts + sequence) + (chunk - tl.load(first + sequence)) * CHUNK + row
    real = t < tl.load(starts + sequence + 1)
    t = t.to(tl.int64)
    rate = 1.0 / (1.0 + tl.exp(-tl.load(gates + t * gates_stride + head, mask=real, other=0.0).to(tl.float32)))
    rate = tl.where(real, rate, 0.0)
    total = tl.cumsum(_decay(gates, t * gates_stride, head, a_log, dt_bias, heads, real), axis=0)
    last = tl.sum(tl.where(row == CHUNK - 1, total, 0.0))
    width: tl.constexpr = 2 * key_heads * KEY + heads * VALUE
    where = t[:, None] * width + key_heads * KEY + head // (heads // key_heads) * KEY + k_at[None, :]
    k = _unit(tl.load(qkv + where, mask=real[:, None] & (k_at < KEY)[None, :], other=0.0).to(tl.float32), EPS)
    kind = qkv.dtype.element_ty
    base = (chunk * heads + head).to(tl.int64)
    tl.store(rest + base, tl.exp(last))
    place, k_in = (base * CHUNK + row)[:, None] * KEY + k_at[None, :], (k_at < KEY)[None, :]
    tl.store(keys + place, (k * tl.exp(last - total)[:, None]).to(kind), mask=k_in)
    weighed = k * rate[:, None]
    lower = times(weighed.to(kind), tl.trans(k.to(kind))) * left_of(total, CHUNK)
    lower = tl.where(row[:, None] > row[None, :], lower, 0.0)
    inverse = _inverse(lower, CHUNK, SOLVED, PRECISION).to(kind)
    made = times(inverse, (weighed * tl.exp(total)[:, None]).to(kind))
    tl.store(reads + place, made.to(kind), mask=k_in)
    where = t[:, None] * width + 2 * key_heads * KEY + head * VALUE + v_at[None, :]
    v = tl.load(qkv + where, mask=real[:, None] & (v_at < VALUE)[None, :], other=0.0).to(tl.float32)
    made = times(inverse, (v * rate[:, None]).to(kind))
    place = (base * CHUNK + row)[:, None] * VALUE + v_at[None, :]
    tl.store(added + place, made.to(kind), mask=(v_at < VALUE)[None, :])


@triton.jit(do_not_specialize=["sequences"])
def _walk(
    state,  # (pages, heads, KEY, VALUE)
    slots,  # (3, sequences) int32
    first,
    counts,  # (sequences,) int32
    added,  # becomes what tokens really add
    reads,
    keys,
    rest,
    before,  # (chunks, heads, KEY, VALUE): the state at the beginning of each chunk
    sequences,
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
    kind = before.dtype.element_ty
    chunks, at = tl.load(counts + i), tl.load(first + i)
    for c in range(chunks):
        base = ((at + c) * heads + head).to(tl.int64)
        narrow = s.to(kind)
        tl.store(before + base * KEY * VALUE + tile, narrow, mask=inside)
        here = (base * CHUNK + row)[:, None]
        w = tl.load(reads + here * KEY + k_at[None, :], mask=k_in[None, :], other=0.0)
        k = tl.load(keys + here * KEY + k_at[None, :], mask=k_in[None, :], other=0.0)
        u = tl.load(added + here * VALUE + v_at[None, :], mask=v_in[None, :], other=0.0).to(tl.float32)
        change = (u - times(w, narrow)).to(kind)
        tl.store(added + here * VALUE + v_at[None, :], change, mask=v_in[None, :])
        s = s * tl.load(rest + base) + times(tl.trans(k), change)
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

    added, reads, keys, before = scratch(CHUNK, value), scratch(CHUNK, key), scratch(CHUNK, key), scratch(key, value)
    rest = torch.empty(chunks.room, heads, dtype=torch.float32, device=qkv.device)
    sizes: tuple[Any, ...] = (KEY_EPS, spec.key_heads, heads, key, value, block_of(key))
    places, ends = (chunks.owner, chunks.first, step.query_start), (gates.stride(0), sequences)
    _solve[(chunks.room, heads)](
        *inputs,
        *places,
        added,
        reads,
        keys,
        rest,
        *ends,
        *sizes,
        block_of(value),
        CHUNK,
        SOLVED,
        _precision(qkv),
        num_warps=TILES.solve_warps,
    )
    block = min(TILES.walk, block_of(value))
    _walk[(sequences, heads, triton.cdiv(value, block))](
        pages.state,
        chunks.slots,
        chunks.first,
        chunks.counts,
        added,
        reads,
        keys,
        rest,
        before,
        sequences,
        *sizes[2:],
        block,
        CHUNK,
        num_warps=TILES.walk_warps,
        num_stages=stages_for(CHUNK * (2 * key + block) * qkv.itemsize, qkv.device),
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


def _precision(x: Tensor) -> str:
    """Of products within `_inverse`, which is rounded to the dtype of `x` afterwards."""
    if x.device.type != "cuda" or torch.version.hip is not None:
        return "ieee"
    return "tf32x3" if x.dtype == torch.float32 else "tf32"
