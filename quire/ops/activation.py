"""The gate of a gated feed-forward layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

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
