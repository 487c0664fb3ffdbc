"""Products of 1 to 128 rows on the matrix units, with weights of 4 or 8 bits turned into values on their way there.

Work is cut along the inputs as in `dense/skinny.py`; `sweep.py` adds up what a block has of them.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.dense.quantized.decode import lift
from quire.kernels.triton.dense.quantized.rows import of_rows
from quire.kernels.triton.dense.quantized.sweep import row_words, swept
from quire.kernels.triton.dense.quantized.weight import Weight
from quire.kernels.triton.dense.skinny import MOST_TILES, all_parts, counters_of, fetch, finished, parts_for
from quire.kernels.triton.launch import INTERPRETED, cdiv, device_of, next_power_of_2, release, wait
from quire.quantization.words import RUN

BLOCKS = 200
"""Blocks that are wanted at least."""
LINE, FETCHED = tl.constexpr(64), 8
"""Words of a line of the cache, and lines of a row that are asked for before the wait."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """`outputs` x `rows` of a result by one block, `depth` words of a row at a time, the inputs cut into `parts`."""

    outputs: int
    rows: int
    depth: int
    parts: int
    stages: int
    warps: int


@triton.jit
def _store(
    sums, ups, scales, factors, bias, out, partial, counters, tile, part, n, m, inside,
    N: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr, GROUP: tl.constexpr,
    FACTOR: tl.constexpr, ROW_BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    LIFT: tl.constexpr,
):  # fmt: skip
    """Add the parts of the tile, and write what becomes of it, by whichever block ends last."""
    mine = True
    if PARTS > 1:
        place = tl.arange(0, OUTPUTS)[:, None] * ROWS + m[None, :]
        mine, sums, ups = all_parts(sums, ups, partial, counters, tile, part, place, GATE, PARTS, OUTPUTS * ROWS)
    if mine:
        safe = tl.minimum(n, N - 1).to(tl.int64)
        sums *= of_rows(scales, factors, safe, SCALE, GROUP, FACTOR, ROW_BLOCK)[:, None] * LIFT
        if GATE != "":
            ups *= of_rows(scales, factors, safe + N, SCALE, GROUP, FACTOR, ROW_BLOCK)[:, None] * LIFT
        result = finished(sums, ups, bias, safe, N, GATE, BIAS, False).to(out.dtype.element_ty)
        tl.store(out + m[:, None] * N + n[None, :], result, mask=inside[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=["rows"])
def _skinny_kernel(
    x, words, scales, zeros, factors, bias, out, partial, counters, rows,
    K: tl.constexpr, N: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
    KIND: tl.constexpr, SCALE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ROW_BLOCK: tl.constexpr, ZEROS: tl.constexpr, FACTOR: tl.constexpr,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr, STAGES: tl.constexpr,
    FETCH: tl.constexpr, WIDEN: tl.constexpr, NATIVE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """N is of the result; with a gate there are 2 N rows of weights, the gate's first."""
    release(PDL)
    tile, part = tl.program_id(0), tl.program_id(1)
    n, m = tile * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, ROWS)
    ROW: tl.constexpr = row_words(K, BITS)
    # Every part but the last takes SHARE words of a row.
    SHARE: tl.constexpr = (ROW + DEPTH * PARTS - 1) // (DEPTH * PARTS) * DEPTH
    EVEN: tl.constexpr = ROW % (DEPTH * PARTS) == 0 and ROW * 16 == K * BITS
    begin = part * SHARE
    end = tl.minimum(begin + SHARE, ROW)
    safe, inside = tl.minimum(n, N - 1).to(tl.int64), m < rows
    if PDL and FETCH > 0:
        lines = tl.minimum(begin + tl.arange(0, FETCH) * LINE, ROW - 1)
        fetch(words, safe, lines, ROW)
        if GATE != "":
            fetch(words, safe + N, lines, ROW)
    wait(PDL)
    sums, ups = swept(
        x, m, inside, words, scales, zeros, safe, safe + N, begin, end, K, GATE != "",
        KIND, SCALE, BITS, GROUP, GROUPS, ROW_BLOCK, ZEROS, DEPTH, STAGES, EVEN, WIDEN, NATIVE,
    )  # fmt: skip
    _store(
        sums, ups, scales, factors, bias, out, partial, counters, tile, part, n, m, inside,
        N, GATE, BIAS, SCALE, GROUP, FACTOR, ROW_BLOCK, OUTPUTS, ROWS, PARTS, lift(KIND, x.dtype.element_ty, NATIVE),
    )  # fmt: skip


def tiling(weight: Weight, rows: int, gate: bool) -> Tiling:
    """How to cut a product of `rows` rows. The rules are what measurements on one H200 had in common."""
    outputs = weight.outputs // 2 if gate else weight.outputs
    wide = max(16, next_power_of_2(rows))
    if gate:
        parts = parts_for(cdiv(outputs, 64), BLOCKS, weight.row_words // 256)
        return Tiling(64, wide, 64, parts, 8 if wide < 64 else 4, 4)
    if wide < 64:
        tiles = cdiv(outputs, 64)
        parts = parts_for(tiles, BLOCKS, weight.row_words // 256)
        if tiles <= MOST_TILES:
            # Long rows are cut until their parts are as short as those of others, as far as tiles can be counted.
            parts = max(parts, parts_for(1, weight.row_words // 512, weight.row_words // 256))
        return Tiling(64, wide, 64, parts, 8, 4)
    parts = parts_for(cdiv(outputs, 128), BLOCKS // 2, weight.row_words // 256)
    return Tiling(128, wide, 64, parts, 4, 8)


def fitted(cut: Tiling, weight: Weight, gate: bool, x: Tensor) -> Tiling:
    """`cut`, with a step in one coarse group, or one run of words of fine ones, and no more than memory holds."""
    group, per = weight.constants["GROUP"], 16 // weight.bits
    depth = cut.depth if not group else RUN if group % 128 else min(cut.depth, 128 // per)
    step = 2 * depth * (cut.outputs * (2 if gate else 1)) + depth * per * cut.rows * x.element_size()
    return replace(cut, depth=depth, stages=max(2, min(cut.stages, device_of(x.device).shared_bytes // step)))


def product(x: Tensor, weight: Weight, bias: Tensor | None, gate: str, cut: Tiling | None = None) -> Tensor:
    """x @ weight.T + bias, then gated where `gate` names an activation; 1 to 128 rows."""
    rows = len(x)
    outputs = weight.outputs // 2 if gate else weight.outputs
    cut = fitted(cut or tiling(weight, rows, bool(gate)), weight, bool(gate), x)
    tiles = cdiv(outputs, cut.outputs)
    assert tiles <= MOST_TILES or cut.parts == 1
    out = torch.empty((rows, outputs), dtype=weight.sums(x.dtype), device=x.device)
    slots = tiles * cut.parts * cut.outputs * cut.rows * (2 if gate else 1) if cut.parts > 1 else 0
    partial = torch.empty(slots, dtype=torch.float32, device=x.device) if slots else out
    lines = cdiv(cdiv(weight.row_words, cut.parts), LINE.value)
    _skinny_kernel[(tiles, cut.parts)](
        x.contiguous(), *weight.tensors, x if bias is None else bias, out, partial, counters_of(x.device), rows,
        K=weight.inputs, N=outputs, GATE=gate, BIAS=bias is not None,
        OUTPUTS=cut.outputs, ROWS=cut.rows, DEPTH=cut.depth, PARTS=cut.parts, STAGES=cut.stages,
        FETCH=min(next_power_of_2(lines), FETCHED), WIDEN=INTERPRETED,
        num_warps=cut.warps, **weight.constants, **device_of(x.device).options,
    )  # fmt: skip
    return out
