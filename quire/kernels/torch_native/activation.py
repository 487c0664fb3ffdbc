"""Gates and activations without an intermediate copy in float32."""

import torch.nn.functional as F
from torch import Tensor

from quire.ops.activation import ActivationSpec, GateSpec, gated_activation, pointwise
from quire.ops.registry import provide


@provide("torch_native", gated_activation)
def native_gated_activation(gate_up: Tensor, spec: GateSpec) -> Tensor:
    """See `gated_activation`."""
    gate, up = gate_up[:, : spec.inner], gate_up[:, spec.inner :]
    gate = F.silu(gate) if spec.activation == "silu" else F.gelu(gate, approximate="tanh")
    return gate.mul_(up)


@provide("torch_native", pointwise)
def native_pointwise(x: Tensor, spec: ActivationSpec) -> Tensor:
    """See `pointwise`."""
    if spec.activation == "silu":
        return F.silu(x)
    if spec.activation in ("gelu", "gelu_tanh"):
        return F.gelu(x, approximate="none" if spec.activation == "gelu" else "tanh")
    out = F.relu(x)
    return out.square_() if spec.activation == "relu2" else out
