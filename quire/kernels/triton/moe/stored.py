"""Experts whose weights have 4 or 8 bits and scales: sorted entries as in `grouped`, weights as in `dense/quantized`.

One kernel is both products. Weight rows are the tall side always, so weights become values in the registers from where
the matrix units take them. Every gate, bias and way to choose is served.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.dense.quantized.decode import lift
from quire.kernels.triton.dense.quantized.rows import of_rows
from quire.kernels.triton.dense.quantized.skinny import Tiling, fitted
from quire.kernels.triton.dense.quantized.sweep import row_words, swept
from quire.kernels.triton.dense.quantized.weight import COARSE, Weight, unread
from quire.kernels.triton.launch import INTERPRETED, begin, cdiv, device_of
from quire.kernels.triton.moe.grouped import combine
from quire.kernels.triton.moe.route import Sorted, refuses_sort, sort
from quire.ops.moe import CLAMP, GAIN, MoeBiases
from quire.ops.registry import provide
from quire.ops.stored_moe import StoredMoeSpec, stored_moe
from quire.quantization.scaled import Scaled

_CLAMP, _GAIN = tl.constexpr(CLAMP), tl.constexpr(GAIN)


@dataclass(frozen=True, slots=True)
class Half:
    """One of an expert's products.

    Attributes:
        bias: (experts, rows of an expert).
        gate: what follows the first product; "" is the second.
        weigh: whether what it reads is weighed.
    """

    weight: Weight
    bias: Tensor | None
    gate: str
    weigh: bool = False

    @property
    def pairs(self) -> bool:
        """Whether rows are a gate's and an up's."""
        return self.gate in ("silu", "clamped")


@triton.jit
def _gated(sums, ups, GATE: tl.constexpr):
    """What goes on from complete sums. Comparisons let NaN through, maxima on GPUs do not."""
    if GATE == "silu":
        sums = sums * tl.sigmoid(sums) * ups
    elif GATE == "clamped":
        most = tl.full(sums.shape, _CLAMP, tl.float32)
        sums = tl.where(sums > most, most, sums)
        ups = tl.where(ups > most, most, tl.where(ups < -most, -most, ups))
        sums = sums * tl.sigmoid(sums * _GAIN) * (ups + 1.0)
    elif GATE == "relu2":
        sums = tl.where(sums < 0.0, 0.0, sums)
        sums = sums * sums
    return sums


@triton.jit
def _product_kernel(
    x, words, scales, zeros, factors, bias, shares, out, entries, ends, tile_expert, tile_start,
    K: tl.constexpr, N: tl.constexpr, GATE: tl.constexpr, PAIRS: tl.constexpr, BIAS: tl.constexpr,
    WEIGH: tl.constexpr, TOP_K: tl.constexpr,
    KIND: tl.constexpr, SCALE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ROW_BLOCK: tl.constexpr, ZEROS: tl.constexpr, FACTOR: tl.constexpr,
    OUTPUTS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    WIDEN: tl.constexpr, NATIVE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """OUTPUTS of N values of TILE entries of one expert.

    The first product reads tokens and writes in sorted order, the second reads that and writes by (token, slot).
    """
    begin(PDL)
    expert = tl.load(tile_expert + tl.program_id(1)).to(tl.int64)
    if expert < 0:
        return
    place = tl.load(tile_start + tl.program_id(1)).to(tl.int64) + tl.arange(0, TILE)
    inside = place < tl.load(ends + expert)
    entry = tl.load(entries + place, mask=inside, other=0).to(tl.int64)
    m, target = place, entry
    if GATE != "":
        m, target = entry // TOP_K, place
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = expert * (2 * N if PAIRS else N) + tl.minimum(n, N - 1)
    ROW: tl.constexpr = row_words(K, BITS)
    EVEN: tl.constexpr = ROW % DEPTH == 0 and ROW * 16 == K * BITS
    sums, ups = swept(
        x, m, inside, words, scales, zeros, row, row + N, 0, ROW, K, PAIRS,
        KIND, SCALE, BITS, GROUP, GROUPS, ROW_BLOCK, ZEROS, DEPTH, STAGES, EVEN, WIDEN, NATIVE,
    )  # fmt: skip
    share = tl.full([TILE], lift(KIND, x.dtype.element_ty, NATIVE), tl.float32)
    if WEIGH:
        share *= tl.load(shares + entry, mask=inside, other=0.0)
    sums *= of_rows(scales, factors, row, SCALE, GROUP, FACTOR, ROW_BLOCK)[:, None] * share[None, :]
    if BIAS:
        sums += tl.load(bias + row).to(tl.float32)[:, None]
    if PAIRS:
        ups *= of_rows(scales, factors, row + N, SCALE, GROUP, FACTOR, ROW_BLOCK)[:, None] * share[None, :]
        if BIAS:
            ups += tl.load(bias + row + N).to(tl.float32)[:, None]
    result = tl.trans(_gated(sums, ups, GATE)).to(out.dtype.element_ty)
    tl.store(out + target[:, None] * N + n[None, :], result, mask=inside[:, None] & (n < N)[None, :])


CUTS = {8: Tiling(64, 16, 64, 1, 4, 4), 24: Tiling(64, 32, 64, 1, 4, 4), 96: Tiling(128, 64, 64, 1, 4, 8)}
"""By entries per expert on average, at most; `rows` are a tile's entries. Tuned on an H200, where twice as many rows a
block are slower up to 64 tokens, and half as many at all sizes."""
MANY = {False: Tiling(128, 128, 64, 1, 3, 8), True: Tiling(128, 64, 64, 1, 4, 8)}
"""The like for more, by whether scales are applied to sums: these take registers of their own."""
PLAIN = Tiling(32, 16, 64, 1, 2, 4)
"""For float32, which matrix units do not multiply exactly."""
ALIKE = CUTS[96]
"""Where a token's result may not depend on how many there are."""


def cut_for(tokens: int, spec: StoredMoeSpec) -> Tiling:
    """By how many entries an expert has on average."""
    assert isinstance(spec.gate_up, Scaled), "unread() refuses all others"
    if spec.dtype == "float32":
        return PLAIN
    route, group = spec.moe.route, spec.gate_up.form.group
    if route.batch_invariant:
        return ALIKE
    average = tokens * route.top_k / route.experts
    many = MANY[group is not None and group >= COARSE]
    return next((cut for most, cut in CUTS.items() if average <= most), many)


def _product(x: Tensor, half: Half, order: Sorted, cut: Tiling) -> Tensor:
    """What the product makes of all entries: in sorted order if it is the first, else by (token, slot)."""
    weight, per = half.weight, 2 if half.pairs else 1
    outputs = weight.outputs // len(order.ends) // per
    cut = fitted(cut, weight, half.pairs, x)
    out = torch.empty(len(order.entries), outputs, dtype=x.dtype, device=x.device)
    _product_kernel[(cdiv(outputs, cut.outputs), len(order.tile_expert))](
        x, *weight.tensors, x if half.bias is None else half.bias, order.weights, out, *order.lists,
        K=weight.inputs, N=outputs, GATE=half.gate, PAIRS=half.pairs, BIAS=half.bias is not None, WEIGH=half.weigh,
        TOP_K=order.weights.shape[1], OUTPUTS=cut.outputs, TILE=cut.rows, DEPTH=cut.depth, STAGES=cut.stages,
        WIDEN=INTERPRETED, num_warps=cut.warps, **weight.constants, **device_of(x.device).options,
    )  # fmt: skip
    return out


def _refuses(spec: StoredMoeSpec) -> str | None:
    if spec.dtype not in ("bfloat16", "float16", "float32"):
        return f"activations of {spec.dtype}"
    forms = [storage.form for storage in (spec.gate_up, spec.down) if isinstance(storage, Scaled)]
    if any(form.ordered or form.shifted or form.columns for form in forms):
        return "does not put inputs in order or multiply them, nor shift groups"
    return refuses_sort(spec.moe.route) or unread(spec.gate_up) or unread(spec.down)


@provide("triton", stored_moe, _refuses, batch_invariant=True)
def triton_stored_moe(
    x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, spec: StoredMoeSpec, biases: MoeBiases | None = None
) -> Tensor:
    """See `stored_moe`."""
    if not len(x):
        return torch.empty_like(x)
    assert isinstance(spec.gate_up, Scaled) and isinstance(spec.down, Scaled), "unread() refuses all others"
    biases, moe, x = biases or MoeBiases(), spec.moe, x.contiguous()
    cut = cut_for(len(x), spec)
    order = sort(logits.contiguous(), moe.route, cut.rows, biases.choice)
    first = Half(Weight(spec.gate_up, gate_up), biases.gate_up, moe.gate, moe.weigh_input)
    made = _product(_product(x, first, order, cut), Half(Weight(spec.down, down), biases.down, ""), order, cut)
    return combine(made, replace(order, weights=torch.ones_like(order.weights)) if moe.weigh_input else order)
