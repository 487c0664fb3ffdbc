"""The gated feed-forward layer."""

from torch import Tensor, nn

from quire.layers.build import Build
from quire.layers.linear import Matrix, column, row
from quire.ops.activation import Activation, GateSpec, gated_activation


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)), cut over the inner size."""

    def __init__(
        self,
        b: Build,
        hidden: int,
        inner: int,
        activation: Activation = "silu",
        bias: bool = False,
        names: tuple[str, str] = ("gate_proj", "up_proj"),
    ) -> None:
        """`names` are the modules that make gate and up; the same name twice for one fused module."""
        super().__init__()
        self.gate_up = column(b, hidden, [Matrix(name, inner) for name in names], bias)
        self.down = row(b / "down_proj", inner, hidden, bias)
        self.spec = GateSpec(b.mesh.split(inner, "intermediate_size"), activation, b.dtype_name, str(b.device))
        self._gate = b.op(gated_activation, self.spec)

    def gate(self, gate_up: Tensor) -> Tensor:
        """activation(gate) * up."""
        gated: Tensor = self._gate(gate_up, self.spec)
        return gated

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to this rank's share of (tokens, hidden), which the mesh must still add up."""
        return self.down.forward(self.gate(self.gate_up.forward(x)))
