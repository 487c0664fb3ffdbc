"""Products of 1 to 128 rows on the matrix units, with weights of 4 or 8 bits turned into values on their way there.

Words of weights come to shared memory ahead of time and become values in registers, from where the matrix units take
them; activations keep their dtype. Scales that belong to 128 inputs or more are applied to sums, finer ones to values.
Work is cut along the inputs as in `dense/skinny.py`.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.dense.quantized.decode import eights, fours, lift, scale
from quire.kernels.triton.dense.quantized.rows import of_rows
from quire.kernels.triton.dense.quantized.weight import Weight
from quire.kernels.triton.dense.skinny import MOST_TILES, all_parts, counters_of, fetch, finished, parts_for
from quire.kernels.triton.launch import device_of, release, wait
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
def _dot(w, x, sums, WIDEN: tl.constexpr):
    """sums + w @ x.T; the interpreter cannot multiply bfloat16."""
    if WIDEN:
        w, x = w.to(tl.float32), x.to(tl.float32)
    return tl.dot(w, tl.trans(x), sums, input_precision="ieee" if x.dtype == tl.float32 else None)


@triton.jit
def _values(x, m, k, inside, K: tl.constexpr, EVEN: tl.constexpr):
    """Inputs `k` of rows `m`."""
    mask = inside[:, None] if EVEN else inside[:, None] & (k < K)[None, :]
    return tl.load(x + m[:, None] * K + k[None, :], mask=mask, other=0.0)


@triton.jit
def _tile(words, n, first, at, end, ROW: tl.constexpr, EVEN: tl.constexpr):
    """Words from `first` on of rows `n`."""
    where = words + n[:, None] * ROW + (first + at)[None, :]
    if EVEN:
        found = tl.load(where)
    else:
        found = tl.load(where, mask=(first + at < end)[None, :], other=0)
    return found


@triton.jit
def _ahead(scales, zeros, n, k, K: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
           ROW_BLOCK: tl.constexpr, SCALE: tl.constexpr, ZEROS: tl.constexpr, BITS: tl.constexpr):  # fmt: skip
    """What is fetched of the scales of inputs from `k` on, for each row `n`.

    Of coarse groups the scale and zero point; of fine ones whose scales are bytes those of a run, four in an integer.
    """
    first = 0
    second = 0
    if GROUP >= 128:
        group = tl.minimum(k, K - 1) // GROUP
        first = tl.load(scales + n // ROW_BLOCK * GROUPS + group)
        if ZEROS:
            second = tl.load(zeros + n * GROUPS + group)
    elif GROUP > 0 and bytewise(SCALE, GROUP, BITS, ZEROS):
        COUNT: tl.constexpr = 512 // BITS // GROUP
        at = scales + n // ROW_BLOCK * GROUPS + tl.minimum(k, K - 512 // BITS) // GROUP
        if COUNT == 2:
            first = tl.load(at.to(tl.pointer_type(tl.int16))).to(tl.int32)
        else:
            first = tl.load(at.to(tl.pointer_type(tl.int32)))
        if COUNT == 8:
            second = tl.load(at.to(tl.pointer_type(tl.int32)) + 1)
    return first, second


@triton.constexpr_function
def bytewise(scale, group, bits, zeros):
    """Whether the scales of a run are 2, 4 or 8 bytes."""
    return scale in ("float8_e4m3fn", "e8m0") and 512 // bits // group in (2, 4, 8) and not zeros


@triton.jit
def _byte(stored, INDEX: tl.constexpr, SCALE: tl.constexpr, LIFT: tl.constexpr):
    """A scale of a run as bfloat16, times LIFT; scales of 8 bits are neither negative nor NaN."""
    bits = stored[0] if INDEX < 4 else stored[1]
    # Where float32 has the end of its exponent, and the beginning of its fraction.
    UP: tl.constexpr = (23 if SCALE == "e8m0" else 20) - 8 * (INDEX % 4)
    moved = bits << UP if UP >= 0 else bits >> -UP
    if SCALE == "e8m0":
        value = (moved & 0x7F800000).to(tl.float32, bitcast=True)
    else:
        value = (moved & 0x07F00000).to(tl.float32, bitcast=True) * 2.0**120
    return value.to(tl.bfloat16) * LIFT


@triton.jit
def _times_bytes(w, now, PART: tl.constexpr, LIFT: tl.constexpr, GROUP: tl.constexpr, SCALE: tl.constexpr):
    """Values `w` (outputs, 32) of the words' PART-th part times their scales: exact, since both are short floats."""
    if GROUP == 16:
        low, high = _byte(now, 2 * PART, SCALE, LIFT), _byte(now, 2 * PART + 1, SCALE, LIFT)
        # (outputs, 2, 16), the second dimension the two groups.
        both = tl.broadcast_to(tl.join(low, high)[:, :, None], [w.shape[0], 2, 16])
        factor = tl.reshape(both, [w.shape[0], 32])
    else:
        factor = _byte(now, PART * 32 // GROUP, SCALE, LIFT)[:, None]
    return w * factor


@triton.jit
def _times(
    w, scales, zeros, n, k, K: tl.constexpr, LIFT: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ROW_BLOCK: tl.constexpr, SCALE: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """Values `w` (outputs, 32) of inputs from `k` on, less their zero points and times their scales."""
    COUNT: tl.constexpr = 2 if GROUP == 16 else 1
    group = tl.minimum(k // GROUP + tl.arange(0, COUNT), GROUPS - 1)[None, :]
    factor = scale(tl.load(scales + (n // ROW_BLOCK)[:, None] * GROUPS + group), SCALE) * LIFT
    parts = tl.reshape(w.to(tl.float32), [w.shape[0], COUNT, 32 // COUNT])
    if ZEROS:
        parts -= tl.load(zeros + n[:, None] * GROUPS + group)[:, :, None].to(tl.float32)
    return tl.reshape(parts * factor[:, :, None], [w.shape[0], 32])


@triton.jit
def _added(
    found, inputs, scales, zeros, n, k, sums, now,
    K: tl.constexpr, KIND: tl.constexpr, SCALE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, ROW_BLOCK: tl.constexpr, ZEROS: tl.constexpr, WIDEN: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Sums with those of a tile of words whose first input is `k`; `now` is what was fetched of their scales.

    `inputs` are the activations of the words' parts, each (rows, words).
    """
    TO: tl.constexpr = inputs[0].dtype
    LIFT: tl.constexpr = lift(KIND, TO, NATIVE)
    if BITS == 8:
        parts = eights(found, KIND, tl.float32 if WIDEN else TO, NATIVE)
    else:
        parts = fours(found, KIND, tl.float32 if WIDEN else TO, NATIVE)
    fresh = tl.zeros_like(sums) if GROUP >= 128 else sums
    for i in tl.static_range(16 // BITS):
        part = parts[i]
        if GROUP >= 128:
            if ZEROS:
                part -= now[1][:, None].to(part.dtype)
        elif GROUP > 0:
            if bytewise(SCALE, GROUP, BITS, ZEROS) and NATIVE and TO.is_bf16():
                part = _times_bytes(part, now, i, LIFT, GROUP, SCALE)
            else:
                part = _times(part, scales, zeros, n, k + 32 * i, K, LIFT, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS)
        fresh = _dot(part.to(TO), inputs[i], fresh, WIDEN)
    if GROUP >= 128:
        fresh = sums + fresh * scale(now[0], SCALE)[:, None]
    return fresh


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
    n = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    m, at = tl.arange(0, ROWS), tl.arange(0, DEPTH)
    PER: tl.constexpr = 16 // BITS
    ROW: tl.constexpr = K // PER
    # Every part but the last takes SHARE words of a row.
    SHARE: tl.constexpr = (ROW + DEPTH * PARTS - 1) // (DEPTH * PARTS) * DEPTH
    EVEN: tl.constexpr = ROW % (DEPTH * PARTS) == 0
    begin = part * SHARE
    end = tl.minimum(begin + SHARE, ROW)
    safe, inside = tl.minimum(n, N - 1).to(tl.int64), m < rows
    if PDL and FETCH > 0:
        lines = tl.minimum(begin + tl.arange(0, FETCH) * LINE, ROW - 1)
        fetch(words, safe, lines, ROW)
        if GATE != "":
            fetch(words, safe + N, lines, ROW)
    wait(PDL)
    sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
    ups = tl.zeros((OUTPUTS, ROWS), tl.float32)
    ahead = _ahead(scales, zeros, safe, begin * PER, K, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS, BITS)
    up_ahead = ahead
    if GATE != "":
        up_ahead = _ahead(scales, zeros, safe + N, begin * PER, K, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS, BITS)
    for first in tl.range(begin, end, DEPTH, num_stages=STAGES):
        k = first * PER
        now, up_now = ahead, up_ahead
        # Fetched a step ahead: nothing else hides how long it takes.
        ahead = _ahead(scales, zeros, safe, k + DEPTH * PER, K, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS, BITS)
        near = k + (at // 32) * (32 * PER) + at % 32
        inputs = ()
        for i in tl.static_range(PER):
            inputs = inputs + (_values(x, m, near + 32 * i, inside, K, EVEN),)
        found = _tile(words, safe, first, at, end, ROW, EVEN)
        sums = _added(
            found, inputs, scales, zeros, safe, k, sums, now,
            K, KIND, SCALE, BITS, GROUP, GROUPS, ROW_BLOCK, ZEROS, WIDEN, NATIVE,
        )  # fmt: skip
        if GATE != "":
            up_ahead = _ahead(scales, zeros, safe + N, k + DEPTH * PER, K, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS, BITS)
            found = _tile(words, safe + N, first, at, end, ROW, EVEN)
            ups = _added(
                found, inputs, scales, zeros, safe + N, k, ups, up_now,
                K, KIND, SCALE, BITS, GROUP, GROUPS, ROW_BLOCK, ZEROS, WIDEN, NATIVE,
            )  # fmt: skip
    _store(
        sums, ups, scales, factors, bias, out, partial, counters, tile, part, n, m, inside,
        N, GATE, BIAS, SCALE, GROUP, FACTOR, ROW_BLOCK, OUTPUTS, ROWS, PARTS, lift(KIND, x.dtype.element_ty, NATIVE),
    )  # fmt: skip


def tiling(weight: Weight, rows: int, gate: bool) -> Tiling:
    """How to cut a product of `rows` rows. The rules are what measurements on one H200 had in common."""
    outputs = weight.outputs // 2 if gate else weight.outputs
    wide = max(16, triton.next_power_of_2(rows))
    if gate:
        parts = parts_for(triton.cdiv(outputs, 64), BLOCKS, weight.row_words // 256)
        return Tiling(64, wide, 64, parts, 8 if wide < 64 else 4, 4)
    if wide < 64:
        tiles = triton.cdiv(outputs, 64)
        parts = parts_for(tiles, BLOCKS, weight.row_words // 256)
        if tiles <= MOST_TILES:
            # Long rows are cut until their parts are as short as those of others, as far as tiles can be counted.
            parts = max(parts, parts_for(1, weight.row_words // 512, weight.row_words // 256))
        return Tiling(64, wide, 64, parts, 8, 4)
    parts = parts_for(triton.cdiv(outputs, 128), BLOCKS // 2, weight.row_words // 256)
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
    tiles = triton.cdiv(outputs, cut.outputs)
    assert tiles <= MOST_TILES or cut.parts == 1
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    slots = tiles * cut.parts * cut.outputs * cut.rows * (2 if gate else 1) if cut.parts > 1 else 0
    partial = torch.empty(slots, dtype=torch.float32, device=x.device) if slots else out
    lines = triton.cdiv(triton.cdiv(weight.row_words, cut.parts), LINE.value)
    _skinny_kernel[(tiles, cut.parts)](
        x.contiguous(), *weight.tensors, x if bias is None else bias, out, partial, counters_of(x.device), rows,
        K=weight.inputs, N=outputs, GATE=gate, BIAS=bias is not None,
        OUTPUTS=cut.outputs, ROWS=cut.rows, DEPTH=cut.depth, PARTS=cut.parts, STAGES=cut.stages,
        FETCH=min(triton.next_power_of_2(lines), FETCHED), WIDEN=triton.knobs.runtime.interpret,
        num_warps=cut.warps, **weight.constants, **device_of(x.device).options,
    )  # fmt: skip
    return out
