"""The gate without an intermediate copy in float32."""

import torch.nn.functional as F
from torch import Tensor

from quire.ops.activation import GateSpec, gated_activation
from quire.ops.registry import provide


@provide("torch_native", gated_activation)
def native_gated_activation(gate_up: Tensor, spec: GateSpec) -> Tensor:
    """See `gated_activation`."""
    gate, up = gate_up[:, : spec.inner], gate_up[:, spec.inner :]
    gate = F.silu(gate) if spec.activation == "silu" else F.gelu(gate, approximate="tanh")
    return gate.mul_(up)
