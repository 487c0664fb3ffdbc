"""The feed-forward layers: gated, and with an activation alone."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from quire.layers.build import Build
from quire.layers.linear import Matrix, column, row
from quire.ops.activation import Activation, ActivationSpec, GateSpec, Pointwise, gated_activation, pointwise
from quire.ops.stored import StoredSpec
from quire.ops.stored_gate import StoredGateSpec, stored_gate_up

ActivationName = Literal["gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "silu"]
"""Activations as config.json calls them."""
_POINTWISE: dict[ActivationName, Pointwise] = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
}


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)), cut over the inner size."""

    def __init__(
        self,
        b: Build,
        hidden: int,
        inner: int,
        activation: Activation = "silu",
        bias: bool = False,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        """`names` are the modules of gate, up and down; the first two alike for one fused module."""
        super().__init__()
        self.gate_up = column(b, hidden, [Matrix(name, inner) for name in names[:2]], bias)
        self.down = row(b / names[2], inner, hidden, bias)
        self.spec = GateSpec(b.mesh.split(inner, "intermediate_size"), activation, b.dtype_name, str(b.device))
        self._gate = b.op(gated_activation, self.spec)
        self._stored: StoredGateSpec | None = None
        self._stored_op = self._gated
        if isinstance(self.gate_up.spec, StoredSpec):
            self._stored = StoredGateSpec(self.gate_up.spec, self.spec)
            self._stored_op = b.op(stored_gate_up, self._stored, self._gated)

    def gated(self, x: Tensor) -> Tensor:
        """activation(gate(x)) * up(x)."""
        return self._stored_op(x, self.gate_up.weight, self.gate_up.bias, self._stored)

    def _gated(self, x: Tensor, *_: object) -> Tensor:
        gated: Tensor = self._gate(self.gate_up.forward(x), self.spec)
        return gated

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to this rank's share of (tokens, hidden), which the mesh must still add up."""
        return self.down.forward(self.gated(x))


@dataclass(frozen=True, slots=True)
class MLPPlan:
    """What a model file says about a feed-forward layer without a gate; sizes are over all ranks.

    Attributes:
        names: of the modules that go up to `inner` and down again.
        transposed: whether the checkpoint holds both matrices as (inputs, outputs).
    """

    hidden: int
    inner: int
    activation: ActivationName
    names: tuple[str, str]
    bias: bool = True
    transposed: bool = False


class MLP(nn.Module):
    """down(activation(up(x))), cut over the inner size."""

    def __init__(self, b: Build, plan: MLPPlan) -> None:
        super().__init__()
        up, down = plan.names
        b.mesh.split(plan.inner, "intermediate_size")
        self.up = column(b, plan.hidden, [Matrix(up, plan.inner, transposed=plan.transposed)], plan.bias)
        self.down = row(b / down, plan.inner, plan.hidden, plan.bias, plan.transposed)
        self.spec = ActivationSpec(_POINTWISE[plan.activation], b.dtype_name, str(b.device))
        self._activate = b.op(pointwise, self.spec)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to this rank's share of (tokens, hidden), which the mesh must still add up."""
        return self.down.forward(self._activate(self.up.forward(x), self.spec))
