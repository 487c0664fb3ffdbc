"""What a feed-forward layer does between its products: the gate, or an activation alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class GateSpec:
    """Gate and up of `inner` values each, side by side in every row."""

    inner: int
    activation: Activation
    dtype: str = "float32"
    device: str = "cpu"


def _samples() -> Iterator[tuple[GateSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for activation in ("silu", "gelu_tanh"):
            for rows, inner in ((1, 8), (7, 48), (0, 8)):
                spec = GateSpec(inner, activation, dtype)
                yield spec, {"gate_up": normal(dtype, rows, 2 * inner), "spec": spec}


@op(samples=_samples)
def gated_activation(gate_up: Tensor, spec: GateSpec) -> Tensor:
    """activation(gate) * up, computed in float32.

    Args:
        gate_up: (tokens, 2 * inner), the gate first.

    Returns: (tokens, inner) in the same dtype.
    """
    gate, up = torch.split(gate_up.float(), spec.inner, dim=-1)
    gate = F.silu(gate) if spec.activation == "silu" else F.gelu(gate, approximate="tanh")
    return (gate * up).to(gate_up.dtype)


Pointwise = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
"""Activations without a gate: gelu is the exact one, gelu_tanh its approximation, relu2 the square of relu."""


@dataclass(frozen=True, slots=True)
class ActivationSpec:
    """One activation, value by value."""

    activation: Pointwise
    dtype: str = "float32"
    device: str = "cpu"


def _pointwise_samples() -> Iterator[tuple[ActivationSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for name in get_args(Pointwise):
            for rows, size in ((1, 8), (7, 48), (0, 8)):
                spec = ActivationSpec(name, dtype)
                yield spec, {"x": normal(dtype, rows, size), "spec": spec}


@op(samples=_pointwise_samples)
def pointwise(x: Tensor, spec: ActivationSpec) -> Tensor:
    """The activation of every value, computed in float32. `x` may be of any shape; the result is like it."""
    wide = x.float()
    if spec.activation == "silu":
        out = F.silu(wide)
    elif spec.activation in ("gelu", "gelu_tanh"):
        out = F.gelu(wide, approximate="none" if spec.activation == "gelu" else "tanh")
    else:
        out = F.relu(wide)
    return (out.square() if spec.activation == "relu2" else out).to(x.dtype)
