"""Mixture of experts whose matrices are stored otherwise than row by row: quantized, or packed for a kernel.

The reference turns the experts that a step needs back into values, one at a time, so it serves every way of storing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.moe import MoeBiases, MoeSpec, RouteSpec, gated, route
from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal
from quire.ops.stored import Storage
from quire.quantization.scaled import Form, Scaled


@dataclass(frozen=True, slots=True)
class StoredMoeSpec:
    """Experts whose rows follow each other: (experts * 2 * inner, hidden) and (experts * hidden, inner)."""

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


FORMS = (Form("fp8_e4m3", None), Form("uint4b8", 32), Form("fp4_e2m1", 16, "float8_e4m3fn", factor="multiply"))


def _samples() -> Iterator[tuple[StoredMoeSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for i, (tokens, experts, top_k, hidden, inner) in enumerate(
            ((1, 8, 2, 64, 32), (9, 6, 2, 96, 48), (0, 4, 2, 32, 16))
        ):
            form, route = FORMS[i % len(FORMS)], RouteSpec(experts, top_k, True, dtype)
            up = Scaled.of(experts * 2 * inner, hidden, form, dtype, "cpu")
            down = Scaled.of(experts * hidden, inner, form, dtype, "cpu")
            spec = StoredMoeSpec(MoeSpec(route, hidden, inner, dtype), up, down)
            weights = []
            for seed, storage in ((2, up), (3, down)):
                weights.append(storage.allocate())
                storage.put(
                    weights[-1], 0, normal(dtype, storage.outputs, storage.inputs, seed=seed) / storage.inputs**0.5
                )
            x, logits = normal(dtype, tokens, hidden), normal(dtype, tokens, experts, seed=1)
            yield spec, {"x": x, "logits": logits, "gate_up": weights[0], "down": weights[1], "spec": spec}


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
        made = F.linear(read, _rows(spec.gate_up, gate_up, expert, 2 * inner).to(x.dtype), first)
        made = F.linear(gated(made, spec.moe), _rows(spec.down, down, expert, hidden).to(x.dtype), second).float()
        out.index_add_(0, tokens, made if spec.moe.weigh_input else made * weight)
    return out.to(x.dtype)


def _rows(storage: Storage, data: Tensor, expert: int, count: int) -> Tensor:
    return storage.rows(data, torch.arange(expert * count, (expert + 1) * count, device=data.device))
