"""Matrix products cut over the mesh: by output rows, by input columns, and several matrices in one.

Cut and storage live here, so a model names its matrices and nothing else. Fused matrices are stored one after another,
[q; k; v] and [gate; up], each cut over the ranks by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from quire.layers.build import Build
from quire.loading.recipe import Part, Weight


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of a fused product, as the checkpoint has it.

    Attributes:
        name: of its module; matrices that follow each other under one name are stored fused in the checkpoint too.
        outputs: its rows, over all ranks.
        copies: so many neighbouring ranks hold the same rows.
    """

    name: str
    outputs: int
    copies: int = 1


class Linear(nn.Module):
    """x @ weight.T + bias, by the op that was chosen for it."""

    def __init__(self, b: Build, weight: Weight, bias: Weight | None = None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.spec, self._apply_op = b.product(weight, bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, inputs) to (tokens, outputs)."""
        out: Tensor = self._apply_op(x, self.weight, self.bias, self.spec)
        return out


def column(b: Build, inputs: int, matrices: Sequence[Matrix], bias: bool = False) -> Linear:
    """Outputs cut over the ranks; every matrix by itself, then stacked. `b` stands above the matrices' names."""
    return Linear(
        b,
        b.matrix(*_parts(matrices, "weight", (inputs,), b.mesh.size)),
        b.weight(*_parts(matrices, "bias", (), b.mesh.size)) if bias else None,
    )


def row(b: Build, inputs: int, outputs: int, bias: bool = False) -> Linear:
    """Inputs cut over the ranks: each rank's result is its share of a sum that the mesh must still add up."""
    b.mesh.split(inputs, "inputs of a row-cut matrix")
    return Linear(
        b,
        b.matrix(Part("weight", (outputs, inputs), cut=1)),
        b.weight(Part("bias", (outputs,), once=True)) if bias else None,
    )


def _parts(matrices: Sequence[Matrix], kind: str, inner: tuple[int, ...], size: int) -> list[Part]:
    totals: dict[str, int] = {}
    for matrix in matrices:
        totals[matrix.name] = totals.get(matrix.name, 0) + matrix.outputs
    parts, seen = [], dict.fromkeys(totals, 0)
    for m in matrices:
        shape = (totals[m.name], *inner)
        parts.append(Part(f"{m.name}.{kind}", shape, 0, first=seen[m.name], rows=m.outputs, copies=m.copies))
        seen[m.name] += m.outputs
    return parts
