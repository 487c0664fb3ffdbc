"""Sorted entries: each tile of an expert's entries meets each tile of its weights once, on the matrix units.

Where experts have few entries, weight rows are the tall side of the products; where they have many, entries are.
Results are written by (token, slot) and summed in the order of slots.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from quire.kernels.triton.launch import INTERPRETED, begin, cdiv, device_of
from quire.kernels.triton.moe.product import Product
from quire.kernels.triton.moe.route import Sorted
from quire.ops.moe import MoeSpec

COMBINE_BLOCK = 1024


@triton.jit
def _weights(weight, matrix, row, k, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr,
             BLOCK_K: tl.constexpr, TMA: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """BLOCK_N rows from `row` and BLOCK_K columns from `k` of `matrix`, which has ROWS rows and WIDTH columns."""
    if TMA:
        tile = weight.load([(matrix * ROWS + row).to(tl.int32), k])
    else:
        rows, columns = row + tl.arange(0, BLOCK_N), k + tl.arange(0, BLOCK_K)
        at = weight + matrix * (ROWS * WIDTH) + rows[:, None] * WIDTH + columns[None, :]
        if EVEN:
            tile = tl.load(at)
        else:
            tile = tl.load(at, mask=(rows < ROWS)[:, None] & (columns < WIDTH)[None, :], other=0.0)
    return tile


@triton.jit
def _gate_up_tile(
    x, gate_up, act, entries, expert, start, end, row,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr, TMA: tl.constexpr, EVEN: tl.constexpr, EXACT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    place = start + tl.arange(0, TILE)
    valid = place < end
    token = (tl.load(entries + place, mask=valid, other=0) // TOP_K).to(tl.int64)
    values = x + token[:, None] * HIDDEN
    if SWAP:
        gate = tl.zeros([BLOCK_N, TILE], tl.float32)
        up = tl.zeros([BLOCK_N, TILE], tl.float32)
    else:
        gate = tl.zeros([TILE, BLOCK_N], tl.float32)
        up = tl.zeros([TILE, BLOCK_N], tl.float32)
    for k in range(0, HIDDEN, BLOCK_K):
        columns = k + tl.arange(0, BLOCK_K)
        mask = valid[:, None] if EVEN else valid[:, None] & (columns < HIDDEN)[None, :]
        value = tl.load(values + columns[None, :], mask=mask, other=0.0)
        w_gate = _weights(gate_up, 2 * expert, row, k, INNER, HIDDEN, BLOCK_N, BLOCK_K, TMA, EVEN)
        w_up = _weights(gate_up, 2 * expert + 1, row, k, INNER, HIDDEN, BLOCK_N, BLOCK_K, TMA, EVEN)
        if WIDEN:
            value, w_gate, w_up = value.to(tl.float32), w_gate.to(tl.float32), w_up.to(tl.float32)
        if SWAP:
            gate = tl.dot(w_gate, value.T, gate, input_precision=EXACT)
            up = tl.dot(w_up, value.T, up, input_precision=EXACT)
        else:
            gate = tl.dot(value, w_gate.T, gate, input_precision=EXACT)
            up = tl.dot(value, w_up.T, up, input_precision=EXACT)
    gated = (gate * tl.sigmoid(gate) * up).to(act.dtype.element_ty)
    if SWAP:
        gated = gated.T
    rows = row + tl.arange(0, BLOCK_N)
    at = act + place.to(tl.int64)[:, None] * INNER + rows[None, :]
    tl.store(at, gated, mask=valid[:, None] if EVEN else valid[:, None] & (rows < INNER)[None, :])


@triton.jit
def _gate_up_kernel(
    x, gate_up, act, entries, ends, tile_expert, tile_start,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HALVES: tl.constexpr,
    SWAP: tl.constexpr, TMA: tl.constexpr, EVEN: tl.constexpr, PDL: tl.constexpr, EXACT: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """silu(gate) * up of TILE sorted entries of one expert and BLOCK_N inner values, written in sorted order."""
    begin(PDL)
    expert = tl.load(tile_expert + tl.program_id(1)).to(tl.int64)
    if expert < 0:
        return
    start = tl.load(tile_start + tl.program_id(1))
    end = tl.load(ends + expert)
    row = tl.program_id(0) * BLOCK_N
    if HALVES and end - start <= TILE // 2:
        _gate_up_tile(
            x, gate_up, act, entries, expert, start, end, row,
            HIDDEN, INNER, TOP_K, TILE // 2, BLOCK_N, BLOCK_K, SWAP, TMA, EVEN, EXACT, WIDEN,
        )  # fmt: skip
    else:
        _gate_up_tile(
            x, gate_up, act, entries, expert, start, end, row,
            HIDDEN, INNER, TOP_K, TILE, BLOCK_N, BLOCK_K, SWAP, TMA, EVEN, EXACT, WIDEN,
        )  # fmt: skip


@triton.jit
def _down_tile(
    act, act_tiles, down, made, entries, expert, start, end, row,
    HIDDEN: tl.constexpr, INNER: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr, TMA: tl.constexpr, EVEN: tl.constexpr, EXACT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    place = start + tl.arange(0, TILE)
    valid = place < end
    entry = tl.load(entries + place, mask=valid, other=0).to(tl.int64)
    values = act + place.to(tl.int64)[:, None] * INNER
    if SWAP:
        total = tl.zeros([BLOCK_N, TILE], tl.float32)
    else:
        total = tl.zeros([TILE, BLOCK_N], tl.float32)
    for k in range(0, INNER, BLOCK_K):
        if TMA and not SWAP:
            # Rows past the end are other experts' or zeros; nothing of them is stored.
            value = act_tiles.load([start, k])
        else:
            columns = k + tl.arange(0, BLOCK_K)
            mask = valid[:, None] if EVEN else valid[:, None] & (columns < INNER)[None, :]
            value = tl.load(values + columns[None, :], mask=mask, other=0.0)
        weight = _weights(down, expert, row, k, HIDDEN, INNER, BLOCK_N, BLOCK_K, TMA, EVEN)
        if WIDEN:
            value, weight = value.to(tl.float32), weight.to(tl.float32)
        if SWAP:
            total = tl.dot(weight, value.T, total, input_precision=EXACT)
        else:
            total = tl.dot(value, weight.T, total, input_precision=EXACT)
    result = total.to(made.dtype.element_ty)
    if SWAP:
        result = result.T
    rows = row + tl.arange(0, BLOCK_N)
    at = made + entry[:, None] * HIDDEN + rows[None, :]
    tl.store(at, result, mask=valid[:, None] if EVEN else valid[:, None] & (rows < HIDDEN)[None, :])


@triton.jit
def _down_kernel(
    act, whole, half, down, made, entries, ends, tile_expert, tile_start,
    HIDDEN: tl.constexpr, INNER: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HALVES: tl.constexpr,
    SWAP: tl.constexpr, TMA: tl.constexpr, EVEN: tl.constexpr, PDL: tl.constexpr, EXACT: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """BLOCK_N hidden values of what one expert makes of TILE sorted entries, written by (token, slot)."""
    begin(PDL)
    expert = tl.load(tile_expert + tl.program_id(1)).to(tl.int64)
    if expert < 0:
        return
    start = tl.load(tile_start + tl.program_id(1))
    end = tl.load(ends + expert)
    row = tl.program_id(0) * BLOCK_N
    if HALVES and end - start <= TILE // 2:
        _down_tile(
            act, half, down, made, entries, expert, start, end, row,
            HIDDEN, INNER, TILE // 2, BLOCK_N, BLOCK_K, SWAP, TMA, EVEN, EXACT, WIDEN,
        )  # fmt: skip
    else:
        _down_tile(
            act, whole, down, made, entries, expert, start, end, row,
            HIDDEN, INNER, TILE, BLOCK_N, BLOCK_K, SWAP, TMA, EVEN, EXACT, WIDEN,
        )  # fmt: skip


@triton.jit
def _combine_kernel(
    made, weights, out, HIDDEN: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """BLOCK hidden values of one token: its experts' results times their weights, in the order of its slots."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    total = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(TOP_K):
        entry = token * TOP_K + slot
        value = tl.load(made + entry * HIDDEN + columns, mask=inside, other=0.0).to(tl.float32)
        total += value * tl.load(weights + entry)
    tl.store(out + token * HIDDEN + columns, total.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the grouped products are cut.

    Attributes:
        tile: entries of one expert that a block computes.
        swap: whether weight rows are the tall side of the products.
        gate_up, down: the two products.
        tma: whether weights come by the bulk copy engine, where there is one.
        halves: whether an expert's last tile is halved where that is enough.
    """

    tile: int
    swap: bool
    gate_up: Product
    down: Product
    tma: bool = False
    halves: bool = False


PLANS = {
    8: Plan(16, True, Product(64, 128, 4), Product(128, 128, 4), tma=True),
    24: Plan(32, True, Product(128, 128, 8), Product(64, 128, 4), tma=True),
    48: Plan(64, False, Product(64, 64, 4), Product(128, 64, 4), tma=True),
}
"""By entries per expert on average, at most. Tuned on an H200 with experts of 768 x 2,048; elsewhere stages are dropped
and depth is cut until a tile fits into shared memory."""
MANY = Plan(128, False, Product(128, 64, 8, 4), Product(128, 64, 4), tma=True, halves=True)
PLAIN = Plan(32, False, Product(32, 32, 4, 2), Product(32, 32, 4, 2))
"""For float32, which matrix units do not multiply exactly."""
ALIKE = PLANS[48]
"""Where a token's result may not depend on how many there are."""


def plan_for(tokens: int, spec: MoeSpec) -> Plan:
    """By how many entries an expert has on average."""
    if spec.dtype == "float32":
        return PLAIN
    if spec.route.batch_invariant:
        return ALIKE
    average = tokens * spec.route.top_k / spec.route.experts
    return next((plan for most, plan in PLANS.items() if average <= most), MANY)


def moe_grouped(x: Tensor, order: Sorted, gate_up: Tensor, down: Tensor, spec: MoeSpec, plan: Plan) -> Tensor:
    """See `ops.moe.moe`; for any number of tokens but 0, sorted for the plan's tiles."""
    return combine(down_of(gate_up_of(x, gate_up, order, spec, plan), down, order, spec, plan), order)


def gate_up_of(x: Tensor, weight: Tensor, order: Sorted, spec: MoeSpec, plan: Plan) -> Tensor:
    """silu(gate) * up of the sorted entries: (entries, inner)."""
    product = plan.gate_up.within(spec.inner, spec.hidden).fitting(plan.tile, 2, x)
    act = torch.empty(len(order.entries), spec.inner, dtype=x.dtype, device=x.device)
    rows, options = _cut(weight, spec.inner, product, plan)
    _gate_up_kernel[(cdiv(spec.inner, product.block_n), len(order.tile_expert))](
        x, rows, act, *order.lists, TOP_K=spec.route.top_k, **options, **_sizes(spec, x)
    )
    return act


def down_of(act: Tensor, weight: Tensor, order: Sorted, spec: MoeSpec, plan: Plan) -> Tensor:
    """What experts make of the sorted entries, by (token, slot): (entries, hidden)."""
    product = plan.down.within(spec.hidden, spec.inner).fitting(plan.tile, 1, act)
    made = torch.empty(len(order.entries), spec.hidden, dtype=act.dtype, device=act.device)
    rows, options = _cut(weight, spec.hidden, product, plan)
    _down_kernel[(cdiv(spec.hidden, product.block_n), len(order.tile_expert))](
        act, *_tiles_of(act, product, plan, options["TMA"]), rows, made, *order.lists, **options, **_sizes(spec, act)
    )
    return made


def combine(made: Tensor, order: Sorted) -> Tensor:
    """The weighted sums over the slots of each token: (tokens, hidden)."""
    (tokens, top_k), hidden = order.weights.shape, made.shape[1]
    out = torch.empty(tokens, hidden, dtype=made.dtype, device=made.device)
    _combine_kernel[(tokens, cdiv(hidden, COMBINE_BLOCK))](
        made, order.weights, out, HIDDEN=hidden, TOP_K=top_k, BLOCK=COMBINE_BLOCK, **device_of(made.device).options
    )  # fmt: skip
    return out


def _sizes(spec: MoeSpec, x: Tensor) -> dict[str, Any]:
    return {"HIDDEN": spec.hidden, "INNER": spec.inner, **device_of(x.device).options}


def _tiles_of(act: Tensor, product: Product, plan: Plan, tma: bool) -> tuple[Any, Any]:
    """The entries as the bulk copy engine takes them: whole and half tiles."""
    if not tma or plan.swap:
        return act, act
    whole, half = ([tile, product.block_k] for tile in (plan.tile, plan.tile // 2))
    return TensorDescriptor.from_tensor(act, whole), TensorDescriptor.from_tensor(act, half)


def _cut(weight: Tensor, rows: int, product: Product, plan: Plan) -> tuple[Tensor | TensorDescriptor, dict[str, Any]]:
    """The weights (..., depth), of whose matrices of `rows` rows tiles are cut, and the options of the launch."""
    depth = weight.shape[-1]
    even = rows % product.block_n == 0 and depth % product.block_k == 0
    tma = plan.tma and even and device_of(weight.device).dependent and weight.element_size() == 2
    options = {
        "TILE": plan.tile, "SWAP": plan.swap, "BLOCK_N": product.block_n, "BLOCK_K": product.block_k,
        "HALVES": plan.halves, "EVEN": even, "TMA": tma, "EXACT": "ieee" if weight.dtype == torch.float32 else "tf32",
        "WIDEN": INTERPRETED, "num_warps": product.warps, "num_stages": product.stages,
    }  # fmt: skip
    if tma:
        flat = weight.reshape(-1, depth)
        return TensorDescriptor.from_tensor(flat, [product.block_n, product.block_k]), options
    return weight, options
