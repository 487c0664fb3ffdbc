"""Products of one row: every weight is read once, by plain loads, at the speed of the memory.

A block owns a few outputs over all of the inputs, so nothing is summed across blocks. Its first weights are in
registers before it waits for the kernel before it. The norm that feeds a product is part of it (its scale is applied
to the result), and so is the gate that follows.
"""

import functools
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton import tuned
from quire.kernels.triton.dense.activation import activate
from quire.kernels.triton.launch import cdiv, device_of, next_power_of_2, release, wait


@dataclass(frozen=True, slots=True)
class Shape:
    """How a product is cut.

    Attributes:
        outputs: of a block.
        chunk: inputs at a time; 256 gives each warp rows of its own.
        held: chunks that are fetched before the wait.
        warps: of a block.
        ahead: chunks that are fetched at once after the wait.
    """

    outputs: int
    chunk: int
    held: int
    warps: int
    ahead: int = 1


@dataclass(frozen=True, slots=True)
class Norm:
    """The norm before a product: what is added to its input, its weight and where the sum is put."""

    delta: Tensor | None
    weight: Tensor
    total: Tensor | None
    eps: float
    offset: float


@triton.jit
def summed(x, delta, total, k, inside, writes, ADD: tl.constexpr):
    """Values `k` of the input in float32, with `delta` added; rounded like the sum that is stored and goes on."""
    wide = tl.load(x + k, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        wide += tl.load(delta + k, mask=inside, other=0.0).to(tl.float32)
        rounded = wide.to(total.dtype.element_ty)
        tl.store(total + k, rounded, mask=inside & writes)
        wide = rounded.to(tl.float32)
    return wide


@triton.jit
def finished(result, up, bias, n, owned, N: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr):
    """Complete sums with their bias, gated."""
    if BIAS:
        result += tl.load(bias + n, mask=owned, other=0.0).to(tl.float32)
        if GATE != "":
            up += tl.load(bias + N + n, mask=owned, other=0.0).to(tl.float32)
    if GATE != "":
        result = activate(result, GATE) * up
    return result


@triton.jit
def _held(
    first, norm_weight, owned, at, lines, K: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr, HELD: tl.constexpr,
    NORM: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """The weights fetched before the wait: of the product, of its gated half, of the norm; tuples of chunks."""
    held = ()
    held_up = ()
    held_norm = ()
    for i in tl.static_range(HELD):
        inside = owned[:, None] & (i * CHUNK + at < K)[None, :]
        held = held + (tl.load(first + i * CHUNK, mask=inside, other=0.0, eviction_policy="evict_first"),)
        if GATE != "":
            up = tl.load(first + (N * K + i * CHUNK), mask=inside, other=0.0, eviction_policy="evict_first")
            held_up = held_up + (up,)
        if NORM:
            k = i * CHUNK + at[None, :] + 0 * lines
            held_norm = held_norm + (tl.load(norm_weight + k, mask=k < K, other=0.0),)
    return held, held_up, held_norm


@triton.jit
def _gemv_kernel(
    x, delta, norm_weight, weight, bias, out, total,
    K: tl.constexpr, N: tl.constexpr, EPS: tl.constexpr, OFFSET: tl.constexpr,
    OUTPUTS: tl.constexpr, CHUNK: tl.constexpr, HELD: tl.constexpr, AHEAD: tl.constexpr,
    NORM: tl.constexpr, ADD: tl.constexpr, BIAS: tl.constexpr, GATE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """N is of the result; with a gate there are 2 N rows of weights, the gate's first."""
    release(PDL)
    block = tl.program_id(0)
    n = block * OUTPUTS + tl.arange(0, OUTPUTS)
    owned = n < N
    at = tl.arange(0, CHUNK)
    # Where a warp has whole rows, each lays out the input like its weights: nothing passes between warps.
    ALONE: tl.constexpr = CHUNK == 256
    lines = tl.arange(0, OUTPUTS)[:, None] if ALONE else tl.arange(0, 1)[:, None]
    first = weight + n.to(tl.int64)[:, None] * K + at[None, :]
    held, held_up, held_norm = _held(first, norm_weight, owned, at, lines, K, N, CHUNK, HELD, NORM, GATE)
    wait(PDL)
    writes = (block == 0) & (lines == 0)
    sums = tl.zeros((OUTPUTS, CHUNK), tl.float32)
    ups = tl.zeros((OUTPUTS, CHUNK), tl.float32)
    squares = tl.zeros((OUTPUTS if ALONE else 1, CHUNK), tl.float32)
    inputs = ()
    for i in tl.static_range(HELD):
        k = i * CHUNK + at[None, :] + 0 * lines
        inputs = inputs + (summed(x, delta, total, k, k < K, writes, ADD),)
    for i in tl.static_range(HELD):
        wide = inputs[i]
        if NORM:
            squares += wide * wide
            wide *= held_norm[i].to(tl.float32) + OFFSET
        sums += held[i].to(tl.float32) * wide
        if GATE != "":
            ups += held_up[i].to(tl.float32) * wide
    for start in range(HELD * CHUNK, K, CHUNK * AHEAD):
        found = ()
        for i in tl.static_range(AHEAD):
            begin = start + i * CHUNK
            inside = owned[:, None] & (begin + at < K)[None, :]
            found = found + (tl.load(first + begin, mask=inside, other=0.0, eviction_policy="evict_first"),)
            if GATE != "":
                up = tl.load(first + (N * K + begin), mask=inside, other=0.0, eviction_policy="evict_first")
                found = found + (up,)
        for i in tl.static_range(AHEAD):
            k = start + i * CHUNK + at[None, :] + 0 * lines
            wide = summed(x, delta, total, k, k < K, writes, ADD)
            if NORM:
                squares += wide * wide
                wide *= tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32) + OFFSET
            if GATE != "":
                sums += found[2 * i].to(tl.float32) * wide
                ups += found[2 * i + 1].to(tl.float32) * wide
            else:
                sums += found[i].to(tl.float32) * wide
    scale = tl.rsqrt(tl.sum(squares, axis=1) / K + EPS) if NORM else 1.0
    result = finished(tl.sum(sums, axis=1) * scale, tl.sum(ups, axis=1) * scale, bias, n, owned, N, GATE, BIAS)
    tl.store(out + n, result.to(out.dtype.element_ty), mask=owned)


@functools.cache
def shape_of(inputs: int, outputs: int, gate: bool, device: torch.device) -> Shape:
    """How to cut a product on `device`, so that it fits beside what runs before and after it.

    Smaller blocks are faster alone and slower in a model, where each kernel begins while others still run: blocks that
    find no room beside those start late, and read their weights when the others have long waited for them.
    """
    found = Shape(**tuned.choose("one row", device, {"inputs": inputs, "outputs": outputs, "gate": int(gate)}))
    chunk = min(found.chunk, next_power_of_2(inputs))
    return replace(found, chunk=chunk, held=min(found.held, cdiv(inputs, chunk)))


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, gate: str, norm: Norm | None = None, shape: Shape | None = None
) -> Tensor:
    """x @ weight.T + bias, of normed x with a `norm`, then gated where `gate` names an activation; x is (1, inputs)."""
    inputs = x.shape[1]
    outputs = weight.shape[0] // 2 if gate else weight.shape[0]
    shape = shape or shape_of(inputs, outputs, bool(gate), x.device)
    out = torch.empty((1, outputs), dtype=x.dtype, device=x.device)
    delta = norm.delta if norm else None
    total = norm.total if norm else None
    _gemv_kernel[(cdiv(outputs, shape.outputs),)](
        x.contiguous(), x if delta is None else delta.contiguous(), norm.weight if norm else weight,
        weight, weight if bias is None else bias, out, out if total is None else total,
        K=inputs, N=outputs, EPS=norm.eps if norm else 0.0, OFFSET=norm.offset if norm else 0.0,
        OUTPUTS=shape.outputs, CHUNK=shape.chunk, HELD=shape.held, AHEAD=shape.ahead,
        NORM=norm is not None, ADD=delta is not None, BIAS=bias is not None, GATE=gate,
        num_warps=shape.warps, **device_of(x.device).options,
    )  # fmt: skip
    return out
