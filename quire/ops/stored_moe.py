"""Mixture of experts whose matrices are stored otherwise than row by row: quantized, or packed for a kernel.

The reference turns the experts that a step needs back into values, one at a time, so it serves every way of storing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.moe import MoeBiases, MoeSpec, RouteSpec, gated, route, sample_biases
from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal
from quire.ops.stored import ARRANGES, BITS, FORMS, OFFERS, WeightSpec
from quire.quantization.scaled import Form, Scaled
from quire.quantization.storage import Storage


@dataclass(frozen=True, slots=True)
class StoredMoeSpec:
    """Experts whose rows follow each other: (experts * firsts * inner, hidden) and (experts * hidden, inner)."""

    moe: MoeSpec
    gate_up: Storage
    down: Storage

    @property
    def dtype(self) -> str:
        """Of activations."""
        return self.moe.dtype

    @property
    def device(self) -> str:
        """Where they are."""
        return self.moe.device


def _samples() -> Iterator[tuple[StoredMoeSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for i, (tokens, experts, top_k, hidden, inner) in enumerate(
            ((1, 8, 2, 64, 32), (9, 6, 2, 96, 48), (0, 4, 2, 32, 16), (9, 8, 3, 96, 64))
        ):
            moe = MoeSpec(RouteSpec(experts, top_k, True, dtype), hidden, inner, dtype)
            shapes = (experts * 2 * inner, hidden), (experts * hidden, inner)
            yield from _scaled(moe, FORMS[i % 3], tokens)
            for bits, way in product(BITS, OFFERS.values()):
                first = way(WeightSpec(*shapes[0], bits, 32, dtype, "cpu", 2 * experts))
                second = way(WeightSpec(*shapes[1], bits, 32, dtype, "cpu", experts))
                if first is not None and second is not None:
                    yield _sample(StoredMoeSpec(moe, first, second), tokens)

    for tokens, forms in ((1, FORMS[:2]), (9, FORMS[2:])):
        best = RouteSpec(8, 3, True, score="sigmoid", bias=True, groups=4, top_groups=2, group_best=2, scale=2.5)
        for form in forms:
            yield from _scaled(MoeSpec(best, 128, 128), form, tokens)
        yield from _scaled(MoeSpec(RouteSpec(8, 2, True), 120, 120, gate="clamped", bias=True), FORMS[1], tokens)
    yield from _scaled(MoeSpec(RouteSpec(8, 2, True), 128, 128, gate="relu2"), FORMS[2], 3)
    single = RouteSpec(6, 1, False, score="sigmoid")
    yield from _scaled(MoeSpec(single, 128, 128, weigh_input=True), FORMS[0], 3)


def _scaled(moe: MoeSpec, form: Form, tokens: int) -> Iterator[tuple[StoredMoeSpec, dict[str, Any]]]:
    """Experts in a form, as it is and in every provider's arrangement."""
    count = moe.route.experts
    shapes = (count * moe.firsts * moe.inner, moe.hidden), (count * moe.hidden, moe.inner)
    plain = [Scaled.of(*shape, form, moe.dtype, "cpu") for shape in shapes]
    ways: list[list[Storage | None]] = [[*plain], *([arrange(one) for one in plain] for arrange in ARRANGES.values())]
    for up, down in ways:
        if up is not None and down is not None:
            yield _sample(StoredMoeSpec(moe, up, down), tokens)


def _sample(spec: StoredMoeSpec, tokens: int) -> tuple[StoredMoeSpec, dict[str, Any]]:
    weights = []
    for seed, storage in ((2, spec.gate_up), (3, spec.down)):
        weights.append(storage.allocate())
        values = normal(spec.dtype, storage.outputs, storage.inputs, seed=seed) / storage.inputs**0.5
        storage.put(weights[-1], 0, values)
    x = normal(spec.dtype, tokens, spec.moe.hidden)
    logits = normal(spec.dtype, tokens, spec.moe.route.experts, seed=1)
    inputs = {"x": x, "logits": logits, "gate_up": weights[0], "down": weights[1], "spec": spec}
    return spec, inputs if spec.moe.plain else {**inputs, "biases": sample_biases(spec.moe)}


@op(
    samples=_samples,
    tolerance={"float32": (2e-2, 2e-1), "bfloat16": (3e-2, 2e-1), "float16": (2e-2, 2e-1)},
    capturable=False,
)
def stored_moe(
    x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, spec: StoredMoeSpec, biases: MoeBiases | None = None
) -> Tensor:
    """The weighted sum of what each token's experts make of it; see `moe`. A provider may quantize activations.

    Args:
        x: (tokens, hidden).
        logits: (tokens, experts), what `route` chooses by.
        gate_up, down: as `spec.gate_up` and `spec.down` store them, the gate's rows of each expert first.

    Returns: (tokens, hidden) in the dtype of `x`, summed in float32. The host asks which experts are needed.
    """
    biases = biases or MoeBiases()
    weights, ids = route(logits, spec.moe.route, biases.choice)
    inner, hidden = spec.moe.inner, spec.moe.hidden
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in ids.unique().tolist():
        tokens, slots = (ids == expert).nonzero(as_tuple=True)
        weight = weights[tokens, slots, None]
        read = (x[tokens].float() * weight).to(x.dtype) if spec.moe.weigh_input else x[tokens]
        first, second = (None if bias is None else bias[expert] for bias in (biases.gate_up, biases.down))
        made = F.linear(read, _rows(spec.gate_up, gate_up, expert, spec.moe.firsts * inner).to(x.dtype), first)
        made = F.linear(gated(made, spec.moe), _rows(spec.down, down, expert, hidden).to(x.dtype), second).float()
        out.index_add_(0, tokens, made if spec.moe.weigh_input else made * weight)
    return out.to(x.dtype)


def _rows(storage: Storage, data: Tensor, expert: int, count: int) -> Tensor:
    return storage.rows(data, torch.arange(expert * count, (expert + 1) * count, device=data.device))
