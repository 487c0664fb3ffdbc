"""Block ops: where the residual stream enters a block, the norm and the block's first product are one.

Each reference is a composition of small ops. Layers that own such a joint ask for the block op and hand over the same
composition out of the small ops that were chosen, so a provider gains by implementing any of the levels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quire.ops.activation import GateSpec, gated_activation
from quire.ops.linear import LinearSpec, linear
from quire.ops.norm import NormSpec, add_rms_norm, rms_norm
from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal


@dataclass(frozen=True, slots=True)
class NormLinearSpec:
    """An RMS norm over the inputs of a product."""

    norm: NormSpec
    linear: LinearSpec

    @property
    def dtype(self) -> str:
        """Of activations and weights."""
        return self.linear.dtype

    @property
    def device(self) -> str:
        """Where they are."""
        return self.linear.device


@dataclass(frozen=True, slots=True)
class NormGateSpec:
    """An RMS norm, the product that makes gate and up, and the gate."""

    norm: NormSpec
    linear: LinearSpec
    gate: GateSpec

    @property
    def dtype(self) -> str:
        """Of activations and weights."""
        return self.linear.dtype

    @property
    def device(self) -> str:
        """Where they are."""
        return self.linear.device


def _inputs(norm: NormSpec, product: LinearSpec, rows: int, delta: bool) -> dict[str, Any]:
    dtype, size = norm.dtype, norm.size
    return {
        "residual": normal(dtype, rows, size),
        "delta": normal(dtype, rows, size, seed=1) if delta else None,
        "norm_weight": 1 + normal(dtype, size, seed=2) / 4 - norm.offset,
        "weight": normal(dtype, product.outputs, size, seed=3) / size**0.5,
        "bias": normal(dtype, product.outputs, seed=4) if product.bias else None,
    }


def _linear_samples() -> Iterator[tuple[NormLinearSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for rows, size, outputs, bias, offset in (
            (1, 64, 24, False, 0.0),
            (3, 32, 16, True, 1.0),
            (0, 16, 8, False, 0.0),
        ):
            norm, product = NormSpec(size, 1e-6, offset, dtype), LinearSpec(size, outputs, bias, dtype)
            spec = NormLinearSpec(norm, product)
            yield spec, {**_inputs(norm, product, rows, delta=rows != 1), "spec": spec}


def _gate_samples() -> Iterator[tuple[NormGateSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for rows, size, inner, bias in ((1, 64, 24, False), (4, 32, 16, True), (9, 64, 16, False), (0, 16, 8, False)):
            norm, product = NormSpec(size, 1e-6, 0.0, dtype), LinearSpec(size, 2 * inner, bias, dtype)
            spec = NormGateSpec(norm, product, GateSpec(inner, "gelu_tanh" if bias else "silu", dtype))
            yield spec, {**_inputs(norm, product, rows, delta=rows != 1), "spec": spec}


def joined(residual: Tensor, delta: Tensor | None, weight: Tensor, spec: NormSpec) -> tuple[Tensor, Tensor]:
    """residual + delta, normed and as it is; without a delta the sum is the residual itself."""
    if delta is None:
        return rms_norm(residual, weight, spec), residual
    normed, total = add_rms_norm(residual, delta, weight, spec)
    return normed, total


@op(samples=_linear_samples)
def norm_linear(
    residual: Tensor,
    delta: Tensor | None,
    norm_weight: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: NormLinearSpec,
) -> tuple[Tensor, Tensor]:
    """linear(rms_norm(residual + delta)), and the sum: `(product, sum)`.

    Args:
        residual: (tokens, inputs).
        delta: like `residual`, summed over the ranks already; None adds nothing.
        norm_weight: (inputs,).
        weight, bias: (outputs, inputs) and (outputs,) or None.

    Returns: (tokens, outputs) and (tokens, inputs). The normed values may be kept wider than their dtype.
    """
    normed, total = joined(residual, delta, norm_weight, spec.norm)
    return linear(normed, weight, bias, spec.linear), total


@op(samples=_gate_samples)
def norm_gate_up(
    residual: Tensor,
    delta: Tensor | None,
    norm_weight: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: NormGateSpec,
) -> tuple[Tensor, Tensor]:
    """gated_activation(linear(rms_norm(residual + delta))), and the sum; arguments as of `norm_linear`.

    Returns: (tokens, outputs / 2) and (tokens, inputs).
    """
    normed, total = joined(residual, delta, norm_weight, spec.norm)
    return gated_activation(linear(normed, weight, bias, spec.linear), spec.gate), total
