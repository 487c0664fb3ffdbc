"""Products of one row with weights of 4 or 8 bits, by plain loads, in float32 or in whole numbers (`dots`).

A block owns a few outputs over all of the inputs, and each of its warps a share of the inputs: what activations a warp
has in registers serves all outputs, and warps meet at the end only. The first weights are in registers before a block
waits for the kernel before it. A thread takes eight words of a row at a time, whose parts are eight inputs each.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton import tuned
from quire.kernels.triton.dense.gemv import finished
from quire.kernels.triton.dense.quantized.decode import added, eights, scale, spread
from quire.kernels.triton.dense.quantized.dots import raised, unit_sums, whole_inputs
from quire.kernels.triton.dense.quantized.rows import of_rows
from quire.kernels.triton.dense.quantized.sweep import row_words
from quire.kernels.triton.dense.quantized.weight import COARSE, Weight, converts
from quire.kernels.triton.launch import INTERPRETED, cdiv, device_of, next_power_of_2, release, wait

UNIT, LANES = 8, 32
"""Words that a thread takes at a time, threads of a warp."""
INTEGERS, HALVES = ("uint4b8", "uint4"), ("bfloat16", "float16")
"""Weights of 4 bits that are whole numbers, activations that whole numbers stand for."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a product is cut: outputs of a block, units of words of a row at a time (32 a warp), such at once."""

    outputs: int
    units: int
    ahead: int


@triton.jit
def _fetched(
    words, scales, zeros, first, at, unit, owned, ROW: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, ROW_BLOCK: tl.constexpr, SCALE: tl.constexpr, ZEROS: tl.constexpr, DOTS: tl.constexpr,
):  # fmt: skip
    """Words (units, outputs, 8) of rows `first + at`, with DOTS two in one, and their parts' scales and zero points."""
    inside = owned[None, :] & (unit < ROW // 8)[:, None]
    if DOTS:
        where = at[None, :, None] * (ROW // 2) + unit[:, None, None] * 4 + tl.arange(0, 4)[None, None, :]
        place = (words + first * ROW).to(tl.pointer_type(tl.int32)) + where
    else:
        where = at[None, :, None] * ROW + unit[:, None, None] * 8 + tl.arange(0, 8)[None, None, :]
        place = words + first * ROW + where
    found = tl.load(place, mask=inside[:, :, None], other=0, eviction_policy="evict_first")
    factors = ()
    points = ()
    if GROUP > 0:
        run, lane = unit // 4, unit % 4
        if ROW_BLOCK == 1:
            row = scales + first * GROUPS + (at * GROUPS)[None, :]
        else:
            row = scales + ((first + at) // ROW_BLOCK)[None, :] * GROUPS
        COUNT: tl.constexpr = 512 // BITS // GROUP
        if GROUP < 128 and SCALE == "float8_e4m3fn" and COUNT == 8:
            # Eight bytes belong to a run; a part's are two, for its first and its last 16 inputs.
            pair = (row + run[:, None] * 8).to(tl.pointer_type(tl.int32))
            factors = (tl.load(pair, mask=inside, other=0), tl.load(pair + 1, mask=inside, other=0))
        elif GROUP < 128 and SCALE == "e8m0" and COUNT == 4:
            factors = (tl.load((row + run[:, None] * 4).to(tl.pointer_type(tl.int32)), mask=inside, other=0),)
        else:
            for i in tl.static_range(1 if GROUP >= 128 else 16 // BITS):
                group = ((run * (512 // BITS) + lane * 8 + 32 * i) // GROUP)[:, None]
                factors = factors + (tl.load(row + group, mask=inside, other=0),)
                if ZEROS:
                    points = points + (
                        tl.load(zeros + first * GROUPS + (at * GROUPS)[None, :] + group, mask=inside, other=0),
                    )
    return found, factors, points


@triton.jit
def _factor(
    factors, PART: tl.constexpr, unit, BITS: tl.constexpr, GROUP: tl.constexpr, SCALE: tl.constexpr
):  # fmt: skip
    """The scales of a part of the words, (units, outputs) float32; those of 8 bits are neither negative nor NaN."""
    COUNT: tl.constexpr = 512 // BITS // GROUP
    if GROUP < 128 and SCALE == "float8_e4m3fn" and COUNT == 8:
        bits = factors[PART // 2] >> ((unit % 4) // 2 * 8)[:, None]
        moved = bits >> 16 if PART % 2 else bits
        value = ((moved << 20) & 0x07F00000).to(tl.float32, bitcast=True) * 2.0**120
    elif GROUP < 128 and SCALE == "e8m0" and COUNT == 4:
        value = (((factors[0] >> (8 * PART)) << 23) & 0x7F800000).to(tl.float32, bitcast=True)
    else:
        value = scale(factors[0 if GROUP >= 128 else PART], SCALE)
    return value


@triton.jit
def _inputs(x, unit, K: tl.constexpr, BITS: tl.constexpr, NATIVE: tl.constexpr, DOTS: tl.constexpr):
    """The activations of each part of the words, (units, 1, 8) float32; with DOTS as `whole_inputs` makes them."""
    k = (unit // 4 * (512 // BITS) + unit % 4 * 8)[:, None, None] + tl.arange(0, 8)[None, None, :]
    inputs = ()
    for i in tl.static_range(16 // BITS):
        inputs = inputs + (tl.load(x + k + 32 * i, mask=k + 32 * i < K, other=0.0).to(tl.float32),)
    if DOTS:
        inputs = whole_inputs(inputs, NATIVE)
    return inputs


@triton.jit
def _product(
    sums, fetched, inputs, unit,
    KIND: tl.constexpr, SCALE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr,
    NATIVE: tl.constexpr, DOTS: tl.constexpr,
):  # fmt: skip
    """`sums` (units, outputs) with what the fetched words add to them."""
    if DOTS:
        found, factors, points = fetched
        part = unit_sums(found, inputs, points[0].to(tl.int32) if ZEROS else raised(KIND), NATIVE)
        sums += part if GROUP == 0 else part * _factor(factors, 0, unit, BITS, GROUP, SCALE)
    else:
        sums = _floating(sums, fetched, inputs, unit, KIND, SCALE, BITS, GROUP, ZEROS, NATIVE)
    return sums


@triton.jit
def _floating(
    sums, fetched, inputs, unit,
    KIND: tl.constexpr, SCALE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    """`_product` in float32."""
    found, factors, points = fetched
    PARTS: tl.constexpr = 16 // BITS
    parts = spread(found, KIND, NATIVE) if BITS == 4 else eights(found, KIND, tl.float32, NATIVE)
    FINE: tl.constexpr = GROUP > 0 and GROUP < 128
    total = sums if GROUP == 0 else tl.zeros_like(sums)
    # What the bits themselves have added to every value, and the inputs that a zero point counts for.
    extra = tl.zeros([unit.shape[0], 1], tl.float32)
    whole = tl.zeros([unit.shape[0], 1], tl.float32)
    for i in tl.static_range(PARTS):
        part = tl.sum(parts[i] * inputs[i], axis=2)
        if FINE:
            if added(KIND, i, NATIVE) != 0.0:
                part -= added(KIND, i, NATIVE) * tl.sum(inputs[i], axis=2)
            if ZEROS:
                part -= points[i].to(tl.float32) * tl.sum(inputs[i], axis=2)
            sums += part * _factor(factors, i, unit, BITS, GROUP, SCALE)
        else:
            total += part
            if added(KIND, i, NATIVE) != 0.0:
                extra += added(KIND, i, NATIVE) * tl.sum(inputs[i], axis=2)
            if ZEROS:
                whole += tl.sum(inputs[i], axis=2)
    if not FINE:
        total -= extra
        if ZEROS:
            total -= points[0].to(tl.float32) * whole
        sums = total if GROUP == 0 else sums + total * _factor(factors, 0, unit, BITS, GROUP, SCALE)
    return sums


@triton.jit
def _taken(
    words, scales, zeros, first, at, start, units, owned, N: tl.constexpr, GATE: tl.constexpr, AHEAD: tl.constexpr,
    UNITS: tl.constexpr, ROW: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ROW_BLOCK: tl.constexpr, SCALE: tl.constexpr, ZEROS: tl.constexpr, DOTS: tl.constexpr,
):  # fmt: skip
    """What is fetched at once: AHEAD chunks from chunk `start` on, of the product and of its gated half."""
    taken = ()
    for i in tl.static_range(AHEAD):
        unit = (start + i) * UNITS + units
        taken = taken + (
            _fetched(
                words, scales, zeros, first, at, unit, owned, ROW, BITS, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS, DOTS
            ),
        )
        if GATE != "":
            more = first + N
            up = _fetched(
                words, scales, zeros, more, at, unit, owned, ROW, BITS, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS, DOTS
            )
            taken = taken + (up,)
    return taken


@triton.jit
def _gemv_kernel(
    x, words, scales, zeros, factors, bias, out,
    K: tl.constexpr, N: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
    KIND: tl.constexpr, SCALE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ROW_BLOCK: tl.constexpr, ZEROS: tl.constexpr, FACTOR: tl.constexpr,
    OUTPUTS: tl.constexpr, UNITS: tl.constexpr, AHEAD: tl.constexpr, DOTS: tl.constexpr,
    NATIVE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """N is of the result; with a gate there are 2 N rows of weights, the gate's first."""
    release(PDL)
    first, at = tl.program_id(0).to(tl.int64) * OUTPUTS, tl.arange(0, OUTPUTS)
    n = first + at
    owned = n < N
    ROW: tl.constexpr = row_words(K, BITS)
    CHUNKS: tl.constexpr = (ROW + 8 * UNITS - 1) // (8 * UNITS)
    EACH: tl.constexpr = 1 if GATE == "" else 2
    units = tl.arange(0, UNITS)
    taken = _taken(
        words, scales, zeros, first, at, 0, units, owned, N, GATE, AHEAD, UNITS,
        ROW, BITS, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS, DOTS,
    )  # fmt: skip
    wait(PDL)
    sums = tl.zeros((UNITS, OUTPUTS), tl.float32)
    ups = tl.zeros((UNITS, OUTPUTS), tl.float32)
    for start in range(0, CHUNKS, AHEAD):
        now = taken
        if CHUNKS > AHEAD:
            taken = _taken(
                words, scales, zeros, first, at, start + AHEAD, units, owned, N, GATE, AHEAD, UNITS,
                ROW, BITS, GROUP, GROUPS, ROW_BLOCK, SCALE, ZEROS, DOTS,
            )  # fmt: skip
        for i in tl.static_range(AHEAD):
            unit = (start + i) * UNITS + units
            inputs = _inputs(x, unit, K, BITS, NATIVE, DOTS)
            sums = _product(sums, now[EACH * i], inputs, unit, KIND, SCALE, BITS, GROUP, ZEROS, NATIVE, DOTS)
            if GATE != "":
                ups = _product(ups, now[EACH * i + 1], inputs, unit, KIND, SCALE, BITS, GROUP, ZEROS, NATIVE, DOTS)
    safe = tl.minimum(n, N - 1)
    LIFT: tl.constexpr = 2.0**14 if KIND == "fp4_e2m1" and NATIVE else 1.0
    result = tl.sum(sums, axis=0) * of_rows(scales, factors, safe, SCALE, GROUP, FACTOR, ROW_BLOCK) * LIFT
    up = result
    if GATE != "":
        up = tl.sum(ups, axis=0) * of_rows(scales, factors, safe + N, SCALE, GROUP, FACTOR, ROW_BLOCK) * LIFT
    result = finished(result, up, bias, n, owned, N, GATE, BIAS)
    tl.store(out + n, result.to(out.dtype.element_ty), mask=owned)


def counts(weight: Weight) -> bool:
    """Whether products are whole numbers at first: of 4-bit integers that share a scale in runs of words."""
    group, storage = weight.constants["GROUP"], weight.storage
    whole = storage.form.element in INTEGERS and group % COARSE == 0 and storage.dtype in HALVES
    return whole and (INTERPRETED or converts(weight.data.device))


def shape_of(weight: Weight, gate: bool, device: torch.device) -> Shape:
    """How to cut a product on `device`."""
    facts = {"inputs": weight.inputs, "outputs": weight.outputs // (2 if gate else 1), "gate": int(gate)}
    facts |= {"bits": weight.bits, "floats": int(weight.storage.form.element.startswith("fp"))}
    return Shape(**tuned.choose("one quantized row", device, {**facts, "whole": int(counts(weight))}))


def fitted(shape: Shape, weight: Weight) -> Shape:
    """`shape`, no wider than the weight's rows."""
    units = max(LANES, min(shape.units, next_power_of_2(cdiv(weight.row_words, UNIT))))
    return replace(shape, units=units, ahead=min(shape.ahead, cdiv(weight.row_words, UNIT * units)))


def product(x: Tensor, weight: Weight, bias: Tensor | None, gate: str, shape: Shape | None = None) -> Tensor:
    """x @ weight.T + bias, then gated where `gate` names an activation; x is (1, inputs)."""
    outputs = weight.outputs // 2 if gate else weight.outputs
    shape = fitted(shape or shape_of(weight, bool(gate), x.device), weight)
    out = torch.empty((1, outputs), dtype=weight.sums(x.dtype), device=x.device)
    _gemv_kernel[(cdiv(outputs, shape.outputs),)](
        x.contiguous(), *weight.tensors, x if bias is None else bias, out,
        K=weight.inputs, N=outputs, GATE=gate, BIAS=bias is not None,
        OUTPUTS=shape.outputs, UNITS=shape.units, AHEAD=shape.ahead, DOTS=counts(weight),
        num_warps=shape.units // LANES, **weight.constants, **device_of(x.device).options,
    )  # fmt: skip
    return out
