"""A handful of tokens: every block finds its expert from the logits by itself and reads a few rows of its weights.

No sort, two launches, and the second one ends with the sum over a token's experts. Bound by reading weights.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import cdiv, device_of, next_power_of_2, release, wait
from quire.kernels.triton.moe.product import Product
from quire.kernels.triton.moe.route import choose, expert_of, keys_of, routing, without
from quire.ops.moe import MoeSpec


@triton.jit
def _few_gate_up_kernel(
    x, logits, gate_up, act,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, WIDE: tl.constexpr,
    E: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_N values of silu(gate) * up of one (token, slot)."""
    wait(PDL)
    release(PDL)
    entry = tl.program_id(0)
    token = entry // TOP_K
    keys = keys_of(logits, token + tl.arange(0, 1), tl.arange(0, E), tl.full([1], 1, tl.int1), EXPERTS, WIDE)
    for _ in range(entry % TOP_K):
        keys = without(keys, tl.max(keys, axis=1, keep_dims=True), WIDE)
    expert = tl.max(expert_of(tl.max(keys, axis=1)), axis=0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    weight = gate_up + expert * (2 * INNER * HIDDEN) + rows[:, None] * HIDDEN
    gate = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for k in tl.static_range(0, HIDDEN, BLOCK_K):
        inside = k + columns < HIDDEN
        mask = (rows < INNER)[:, None] & inside[None, :]
        value = tl.load(x + token * HIDDEN + k + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
        at = weight + (k + columns)[None, :]
        gate += tl.load(at, mask=mask, other=0.0).to(tl.float32) * value
        up += tl.load(at + INNER * HIDDEN, mask=mask, other=0.0).to(tl.float32) * value
    gated = tl.sum(gate, axis=1)
    gated = gated * tl.sigmoid(gated) * tl.sum(up, axis=1)
    tl.store(act + entry * INNER + rows, gated.to(act.dtype.element_ty), mask=rows < INNER)


@triton.jit
def _few_down_kernel(
    act, logits, down, out,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, NORMALIZE: tl.constexpr,
    WIDE: tl.constexpr, E: tl.constexpr, SLOTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PDL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_N values of one token's result: all its experts, summed in the order of its slots."""
    release(PDL)
    if not EARLY:
        wait(PDL)
    token = tl.program_id(0)
    keys = keys_of(logits, token + tl.arange(0, 1), tl.arange(0, E), tl.full([1], 1, tl.int1), EXPERTS, WIDE)
    ids, shares, _ = choose(keys, EXPERTS, TOP_K, SLOTS, NORMALIZE, WIDE)
    slots = tl.arange(0, SLOTS)
    ids, shares = tl.reshape(ids, [SLOTS]), tl.reshape(shares, [SLOTS])
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    # (slots, rows) side by side as one dimension.
    expert = tl.reshape(tl.broadcast_to(ids[:, None], [SLOTS, BLOCK_N]), [SLOTS * BLOCK_N]).to(tl.int64)
    slot = tl.reshape(tl.broadcast_to(slots[:, None], [SLOTS, BLOCK_N]), [SLOTS * BLOCK_N])
    row = tl.reshape(tl.broadcast_to(rows[None, :], [SLOTS, BLOCK_N]), [SLOTS * BLOCK_N])
    real = (slot < TOP_K) & (row < HIDDEN)
    weight = down + (expert * HIDDEN + row)[:, None] * INNER
    value = act + (token * TOP_K + slot)[:, None] * INNER
    total = tl.zeros([SLOTS * BLOCK_N, BLOCK_K], tl.float32)
    early = tl.load(weight + columns[None, :], mask=real[:, None] & (columns[None, :] < INNER), other=0.0)
    if EARLY:
        wait(PDL)
    for k in tl.static_range(0, INNER, BLOCK_K):
        column = (k + columns)[None, :]
        mask = real[:, None] & (column < INNER)
        loaded = early if k == 0 else tl.load(weight + column, mask=mask, other=0.0)
        total += loaded.to(tl.float32) * tl.load(value + column, mask=mask, other=0.0).to(tl.float32)
    made = tl.reshape(tl.sum(total, axis=1), [SLOTS, BLOCK_N])
    result = tl.sum(tl.where((slots < TOP_K)[:, None], made * shares[:, None], 0.0), axis=0)
    tl.store(out + token * HIDDEN + rows, result.to(out.dtype.element_ty), mask=rows < HIDDEN)


FEW = (Product(4, 2048, 4), Product(4, 256, 4))


def moe_few(
    x: Tensor,
    logits: Tensor,
    gate_up: Tensor,
    down: Tensor,
    spec: MoeSpec,
    products: tuple[Product, Product] = FEW,
    early: bool = True,
) -> Tensor:
    """Without a sort: every (token, slot) reads its expert's weights by itself."""
    (tokens, _), top_k, launch = x.shape, spec.route.top_k, device_of(x.device).options
    sizes = {"HIDDEN": spec.hidden, "INNER": spec.inner, **routing(spec.route, logits), **launch}
    act = torch.empty(tokens * top_k, spec.inner, dtype=x.dtype, device=x.device)
    out = torch.empty_like(x)
    first, second = products[0].within(spec.inner, spec.hidden), products[1].within(spec.hidden, spec.inner)
    _few_gate_up_kernel[(tokens * top_k, cdiv(spec.inner, first.block_n))](
        x, logits, gate_up, act, BLOCK_N=first.block_n, BLOCK_K=first.block_k, num_warps=first.warps, **sizes
    )
    _few_down_kernel[(tokens, cdiv(spec.hidden, second.block_n))](
        act, logits, down, out, NORMALIZE=spec.route.normalize, SLOTS=next_power_of_2(top_k),
        EARLY=early, BLOCK_N=second.block_n, BLOCK_K=second.block_k, num_warps=second.warps, **sizes,
    )  # fmt: skip
    return out
