"""The first half of a gated feed-forward layer whose weights are not stored row by row: the product and its gate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quire.ops.activation import GateSpec, gated_activation
from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal
from quire.ops.stored import TOLERANCE, StoredSpec, scaled_samples, stored_linear


@dataclass(frozen=True, slots=True)
class StoredGateSpec:
    """A product with a stored weight that makes gate and up, and the gate."""

    product: StoredSpec
    gate: GateSpec

    @property
    def dtype(self) -> str:
        """Of activations."""
        return self.product.dtype

    @property
    def device(self) -> str:
        """Where they are."""
        return self.product.device


def _samples() -> Iterator[tuple[StoredGateSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for bias in (False, True):
            for storage, weight in scaled_samples(48, 256, dtype):
                gate = GateSpec(24, "gelu_tanh" if bias else "silu", dtype)
                spec = StoredGateSpec(StoredSpec(storage, bias, dtype), gate)
                tensors = {"x": normal(dtype, 2 if bias else 1, 256) / 16, "weight": weight}
                yield spec, {**tensors, "bias": normal(dtype, 48, seed=2) if bias else None, "spec": spec}


@op(samples=_samples, tolerance=TOLERANCE)
def stored_gate_up(x: Tensor, weight: Tensor, bias: Tensor | None, spec: StoredGateSpec) -> Tensor:
    """gated_activation(stored_linear(x)); arguments as of `stored_linear`, the gate's rows of the weight first.

    Returns: (tokens, outputs / 2) in the dtype of `x`.
    """
    gated: Tensor = gated_activation(stored_linear(x, weight, bias, spec.product), spec.gate)
    return gated
