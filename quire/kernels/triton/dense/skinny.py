"""Products of a few up to 128 rows, on the matrix units: the weights take the side that must be long.

Work is also cut along the inputs, so that all multiprocessors read weights. The parts of a tile are summed in their
order by whichever block ends last, so the result is the same in every run. What a block reads of the weights first is
on its way into the L2 cache before the block waits for the kernel before it.
"""

import functools
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton import tuned
from quire.kernels.triton.dense.activation import activate
from quire.kernels.triton.launch import INTERPRETED, cdiv, device_of, next_power_of_2, release, wait

MOST_TILES = 4096
"""Tiles of one product whose parts may be counted at once."""
SMALL = 8 << 20
"""Weights of a product that takes less time to read than to begin."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """`outputs` x `rows` of a result by one block, `depth` inputs at a time, the inputs cut into `parts`.

    The first `held` steps' weights are in registers before the block waits; the others come in `stages`.
    """

    outputs: int
    rows: int
    depth: int
    parts: int
    stages: int
    warps: int
    held: int = 0


@triton.jit
def _dot(w, x, sums, FLIP: tl.constexpr, WIDEN: tl.constexpr):
    """sums + w @ x.T, or its transpose; the interpreter cannot multiply bfloat16."""
    if WIDEN:
        w, x = w.to(tl.float32), x.to(tl.float32)
    if FLIP:
        sums = tl.dot(x, tl.trans(w), sums)
    else:
        sums = tl.dot(w, tl.trans(x), sums)
    return sums


@triton.jit
def fetch(weight, n, k, K: tl.constexpr):
    """Ask for the L2 cache lines of weights (n, k)."""
    pointers = weight + n.to(tl.int64)[:, None] * K + k[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _weights(weights, k, end, EVEN: tl.constexpr):
    """A tile of weights from input `k` on."""
    if EVEN:
        tile = tl.load(weights)
    else:
        tile = tl.load(weights, mask=(k < end)[None, :], other=0.0)
    return tile


@triton.jit
def _values(x, k, end, inside, EVEN: tl.constexpr):
    """A tile of the rows from input `k` on."""
    if EVEN:
        tile = tl.load(x, mask=inside[:, None], other=0.0)
    else:
        tile = tl.load(x, mask=inside[:, None] & (k < end)[None, :], other=0.0)
    return tile


@triton.jit
def all_parts(
    sums, ups, partial, counters, tile, part, place,
    GATE: tl.constexpr, PARTS: tl.constexpr, AREA: tl.constexpr,
):  # fmt: skip
    """Leave this part for the last block of the tile; that one gets them all, added in their order."""
    SLOT: tl.constexpr = AREA * 2 if GATE != "" else AREA
    # As many parts are loaded at once as registers hold.
    GROUP: tl.constexpr = 8 if SLOT <= 1024 else 4 if SLOT <= 4096 else 2
    slots = partial + tile.to(tl.int64) * (PARTS * SLOT) + place
    tl.store(slots + part * SLOT, sums)
    if GATE != "":
        tl.store(slots + (part * SLOT + AREA), ups)
    # All threads' parts are written before the block is counted.
    tl.debug_barrier()
    last = tl.atomic_add(counters + tile, 1, sem="acq_rel") == PARTS - 1
    if last:
        sums = tl.zeros_like(sums)
        ups = tl.zeros_like(ups)
        for group in tl.static_range(0, PARTS, GROUP):
            found = ()
            for i in tl.static_range(group, min(group + GROUP, PARTS)):
                found = found + (tl.load(slots + i * SLOT, cache_modifier=".cg"),)
                if GATE != "":
                    found = found + (tl.load(slots + (i * SLOT + AREA), cache_modifier=".cg"),)
            for i in tl.static_range(min(GROUP, PARTS - group)):
                if GATE != "":
                    sums += found[2 * i]
                    ups += found[2 * i + 1]
                else:
                    sums += found[i]
        tl.store(counters + tile, 0)
    return last, sums, ups


@triton.jit
def finished(sums, ups, bias, n, N: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, FLIP: tl.constexpr):
    """The result, rows first, from complete sums."""
    if BIAS:
        added = tl.load(bias + n).to(tl.float32)
        sums += added[None, :] if FLIP else added[:, None]
        if GATE != "":
            added = tl.load(bias + N + n).to(tl.float32)
            ups += added[None, :] if FLIP else added[:, None]
    if GATE != "":
        sums = activate(sums, GATE) * ups
    return sums if FLIP else tl.trans(sums)


@triton.jit(do_not_specialize=["rows"])
def _skinny_kernel(
    x, weight, bias, out, partial, counters, rows,
    K: tl.constexpr, N: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr, STAGES: tl.constexpr,
    HELD: tl.constexpr, FETCH: tl.constexpr, WIDEN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """N is of the result; with a gate there are 2 N rows of weights, the gate's first."""
    release(PDL)
    tile, part = tl.program_id(0), tl.program_id(1)
    n = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    m, at = tl.arange(0, ROWS), tl.arange(0, DEPTH)
    # Every part but the last takes SHARE inputs.
    SHARE: tl.constexpr = (K + DEPTH * PARTS - 1) // (DEPTH * PARTS) * DEPTH
    EVEN: tl.constexpr = K % (DEPTH * PARTS) == 0
    begin = part * SHARE
    end = tl.minimum(begin + SHARE, K)
    safe_n, inside = tl.minimum(n, N - 1), m < rows
    w_at = weight + safe_n.to(tl.int64)[:, None] * K + at[None, :]
    x_at = x + m[:, None] * K + at[None, :]
    held = ()
    held_up = ()
    for k in tl.static_range(0, HELD * DEPTH, DEPTH):
        held = held + (_weights(w_at + begin + k, begin + k + at, end, EVEN),)
        if GATE != "":
            held_up = held_up + (_weights(w_at + N * K + begin + k, begin + k + at, end, EVEN),)
    if PDL and FETCH > 0:
        ahead = tl.minimum(begin + HELD * DEPTH + tl.arange(0, FETCH) * 64, K - 1)
        fetch(weight, safe_n, ahead, K)
        if GATE != "":
            fetch(weight, safe_n + N, ahead, K)
    wait(PDL)
    # The side that is a multiple of 64 goes to the matrix units' long side.
    FLIP: tl.constexpr = ROWS >= 64
    sums = tl.zeros((ROWS, OUTPUTS) if FLIP else (OUTPUTS, ROWS), tl.float32)
    ups = tl.zeros((ROWS, OUTPUTS) if FLIP else (OUTPUTS, ROWS), tl.float32)
    values = ()
    for k in tl.static_range(0, HELD * DEPTH, DEPTH):
        values = values + (_values(x_at + begin + k, begin + k + at, end, inside, EVEN),)
    for i in tl.static_range(HELD):
        sums = _dot(held[i], values[i], sums, FLIP, WIDEN)
        if GATE != "":
            ups = _dot(held_up[i], values[i], ups, FLIP, WIDEN)
    if HELD * DEPTH < SHARE:
        for k in tl.range(begin + HELD * DEPTH, end, DEPTH, num_stages=STAGES):
            now = _values(x_at + k, k + at, end, inside, EVEN)
            sums = _dot(_weights(w_at + k, k + at, end, EVEN), now, sums, FLIP, WIDEN)
            if GATE != "":
                ups = _dot(_weights(w_at + N * K + k, k + at, end, EVEN), now, ups, FLIP, WIDEN)
    mine = True
    if PARTS > 1:
        j = tl.arange(0, OUTPUTS)
        place = m[:, None] * OUTPUTS + j[None, :] if FLIP else j[:, None] * ROWS + m[None, :]
        mine, sums, ups = all_parts(sums, ups, partial, counters, tile, part, place, GATE, PARTS, OUTPUTS * ROWS)
    if mine:
        result = finished(sums, ups, bias, safe_n, N, GATE, BIAS, FLIP).to(out.dtype.element_ty)
        tl.store(out + m[:, None] * N + n[None, :], result, mask=inside[:, None] & (n < N)[None, :])


@functools.cache
def counters_of(device: torch.device) -> Tensor:
    """One count per tile, 0 between kernels. Kernels that use it run one after another: a device has one stream."""
    return torch.zeros(MOST_TILES, dtype=torch.int32, device=device)


@dataclass(frozen=True, slots=True)
class Rule:
    """How the files in `tuned` say that products are cut; see `Tiling`.

    Attributes:
        rows: 0 for as many as the product has.
        parts: at least; more until there are `blocks` blocks, while each has `share` inputs.
        held: weights times rows that a block may hold before it waits; then all of its weights are held.
    """

    outputs: int
    depth: int
    stages: int
    warps: int
    rows: int = 0
    parts: int = 1
    blocks: int = 0
    share: int = 1
    held: int = 0


@functools.cache
def tiling(outputs: int, inputs: int, rows: int, gate: bool, device: torch.device) -> Tiling:
    """How to cut a product of `rows` rows. The rules are what measurements on one H200 had in common.

    Small products wait for each other more than for memory: few parts, all weights fetched before the wait, or narrow
    tiles that need no parts. Large ones read the rows' values again for each tile, so their tiles are as tall as still
    keeps all multiprocessors busy.
    """
    wide = max(16, next_power_of_2(rows))
    small = outputs * inputs * (2 if gate else 1) <= SMALL
    facts = {"rows": wide, "inputs": inputs, "outputs": outputs, "gate": int(gate), "small": int(small)}
    rule = Rule(**tuned.choose("few rows", device, facts))
    wide = rule.rows or wide
    parts = max(rule.parts, parts_for(cdiv(outputs, rule.outputs), rule.blocks, inputs // rule.share))
    held = 0
    if rule.held:
        # No more weights in flight than shared memory holds twice: of this kernel and of the next.
        parts = max(parts, cdiv(inputs, rule.held // wide))
        held = cdiv(inputs, rule.depth * parts)
    return Tiling(rule.outputs, wide, rule.depth, parts, rule.stages, rule.warps, held)


@functools.cache
def fitted(cut: Tiling, inputs: int, gate: bool, shared: int) -> Tiling:
    """`cut`, with as much in flight as `shared` bytes of memory hold."""
    steps = cdiv(inputs, cut.depth * cut.parts)
    cut = replace(cut, held=min(cut.held, steps))
    weights, values = cut.outputs * (2 if gate else 1), cut.rows
    held = cut.held * (weights + (values if cut.held == steps else 0))
    flying = (cut.stages if steps > cut.held else 0) * (weights + values)
    if 2 * cut.depth * (held + flying) <= shared or cut.depth <= 16:
        return cut
    if cut.held:
        return fitted(replace(cut, held=0, stages=4), inputs, gate, shared)
    if cut.stages > 2:
        return fitted(replace(cut, stages=cut.stages - 1), inputs, gate, shared)
    return fitted(replace(cut, depth=cut.depth // 2), inputs, gate, shared)


def parts_for(tiles: int, blocks: int, most: int) -> int:
    """Parts that make at least `blocks` blocks of `tiles` tiles, a power of 2 up to `most`."""
    parts = 1
    while tiles * parts < blocks and 2 * parts <= most:
        parts *= 2
    return parts


def product(x: Tensor, weight: Tensor, bias: Tensor | None, gate: str, cut: Tiling | None = None) -> Tensor:
    """x @ weight.T + bias, then gated where `gate` names an activation; 1 to 128 rows."""
    rows, inputs = x.shape
    outputs = weight.shape[0] // 2 if gate else weight.shape[0]
    cut = cut or tiling(outputs, inputs, rows, bool(gate), x.device)
    cut = fitted(cut, inputs, bool(gate), device_of(x.device).shared_bytes)
    tiles = cdiv(outputs, cut.outputs)
    assert tiles <= MOST_TILES or cut.parts == 1
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    slots = tiles * cut.parts * cut.outputs * cut.rows * (2 if gate else 1) if cut.parts > 1 else 0
    partial = torch.empty(slots, dtype=torch.float32, device=x.device) if slots else out
    rest = cdiv(inputs, cut.depth * cut.parts) * cut.depth - cut.held * cut.depth
    _skinny_kernel[(tiles, cut.parts)](
        x.contiguous(), weight, weight if bias is None else bias, out, partial, counters_of(x.device), rows,
        K=inputs, N=outputs, GATE=gate, BIAS=bias is not None,
        OUTPUTS=cut.outputs, ROWS=cut.rows, DEPTH=cut.depth, PARTS=cut.parts, STAGES=cut.stages, HELD=cut.held,
        FETCH=min(next_power_of_2(cdiv(rest, 64)), 8) if rest > 0 else 0,
        WIDEN=INTERPRETED, num_warps=cut.warps, **device_of(x.device).options,
    )  # fmt: skip
    return out
