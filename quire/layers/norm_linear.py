"""Where the residual stream enters a block: the norm, the block's first product and what follows it, as one op.

Blocks hand on a `Stream`, never a bare sum: what the last block adds is summed over the ranks, added to the residual
and normed in one place. A provider that has the fused op serves it; otherwise the small ops run as they were chosen.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from quire.layers.build import Build
from quire.layers.linear import Linear
from quire.layers.mlp import GatedMLP
from quire.layers.norm import Norm, RMSNorm
from quire.ops.block import NormGateSpec, NormLinearSpec, norm_gate_up, norm_linear
from quire.ops.linear import LinearSpec
from quire.parallel.mesh import Mesh


@dataclass(frozen=True, slots=True)
class Stream:
    """What flows between blocks.

    Attributes:
        residual: (tokens, hidden), whole on every rank.
        delta: what the last block adds, None at the start.
        partial: whether `delta` is each rank's share of a sum.
    """

    residual: Tensor
    delta: Tensor | None = None
    partial: bool = False

    def join(self, norm: Norm, mesh: Mesh) -> tuple[Tensor, Tensor]:
        """Add the delta to the residual: `(normed, residual)`."""
        return norm.add(self.residual, None if self.delta is None else self.whole(mesh))

    def enter(self, joint: "NormLinear", mesh: Mesh) -> tuple[Tensor, Tensor]:
        """Add the delta to the residual and begin a block: `(what the joint makes, residual)`."""
        return joint.forward(self.residual, None if self.delta is None else self.whole(mesh))

    def total(self, mesh: Mesh) -> Tensor:
        """The residual with the delta added."""
        return self.residual if self.delta is None else self.residual + self.whole(mesh)

    def at(self, rows: Tensor) -> "Stream":
        """The stream of the tokens `rows`, (n,) int64, alone."""
        return Stream(self.residual[rows], None if self.delta is None else self.delta[rows], self.partial)

    def whole(self, mesh: Mesh) -> Tensor:
        """The delta, summed over the ranks."""
        assert self.delta is not None, "the stream has a delta after the first block"
        return mesh.all_reduce(self.delta) if self.partial else self.delta


class NormLinear:
    """A norm and the first product of the block behind it; with `mlp`, also its gate.

    Block ops norm by the root mean square and read weights row by row; another norm, or a weight that is stored
    otherwise, goes through the small ops.
    """

    def __init__(self, b: Build, norm: Norm, product: Linear, mlp: GatedMLP | None = None) -> None:
        self._norm, self._product = norm, product
        self._begin: Callable[[Tensor], Tensor] = product.forward if mlp is None else mlp.gated
        self._spec: NormLinearSpec | NormGateSpec | None = None
        self._op: Callable[..., tuple[Tensor, Tensor]] = self._composed
        if isinstance(product.spec, LinearSpec) and isinstance(norm, RMSNorm):
            self._spec = NormLinearSpec(norm.spec, product.spec)
            if mlp is not None:
                self._spec = NormGateSpec(norm.spec, product.spec, mlp.spec)
            self._op = b.op(norm_linear if mlp is None else norm_gate_up, self._spec, self._composed)

    def forward(self, residual: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the block's first part makes of norm(residual + delta), and residual + delta."""
        product = self._product
        made, total = self._op(residual, delta, self._norm.weight, product.weight, product.bias, self._spec)
        return made, total

    def _composed(self, residual: Tensor, delta: Tensor | None, *_: object) -> tuple[Tensor, Tensor]:
        normed, total = self._norm.add(residual, delta)
        return self._begin(normed), total
