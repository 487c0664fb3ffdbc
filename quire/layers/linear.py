"""Matrix products cut over the mesh: by output rows, by input columns, and several matrices in one.

Cut and storage live here, so a model names its matrices and nothing else. Fused matrices are stored one after another,
[q; k; v] and [gate; up], each cut over the ranks by itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from quire.layers.build import Build
from quire.loading.recipe import Part, Weight
from quire.parallel.mesh import Mesh


@dataclass(frozen=True, slots=True)
class Interleave:
    """Where the heads of a matrix lie in a checkpoint's tensor that mixes them with those of other matrices.

    The tensor is a row of equal groups; each has `per` heads of this matrix one after another.

    Attributes:
        every: rows of a group.
        offset: row of the group at which this matrix's heads begin.
        per: heads of this matrix in a group.
        size: rows of a head.
    """

    every: int
    offset: int
    per: int
    size: int

    def runs(self, first: int, heads: int) -> Iterator[tuple[int, int]]:
        """`(first row, rows)` of the heads from `first` on, in order, as few runs as there are."""
        end = first + heads
        while first < end:
            group, within = divmod(first, self.per)
            count = min(end - first, self.per - within)
            yield group * self.every + self.offset + within * self.size, count * self.size
            first += count


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of a fused product, as the checkpoint has it.

    Attributes:
        name: of its module; matrices that follow each other under one name are stored fused in the checkpoint too.
        outputs: its rows, over all ranks.
        copies: so many neighbouring ranks hold the same rows.
        interleave: where its heads lie, if the fused tensor mixes them head by head.
        halves: as of `Part`.
        transposed: whether the checkpoint holds (inputs, outputs).
    """

    name: str
    outputs: int
    copies: int = 1
    interleave: Interleave | None = None
    halves: tuple[int, int] | None = None
    transposed: bool = False


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
        b.matrix(*_parts(matrices, "weight", (inputs,), b.mesh)),
        b.weight(*_parts(matrices, "bias", (), b.mesh)) if bias else None,
    )


def row(b: Build, inputs: int, outputs: int, bias: bool = False, transposed: bool = False) -> Linear:
    """Inputs cut over the ranks: each rank's result is its share of a sum that the mesh must still add up."""
    b.mesh.split(inputs, "inputs of a row-cut matrix")
    return Linear(
        b,
        b.matrix(Part("weight", (outputs, inputs), cut=1, transposed=transposed)),
        b.weight(Part("bias", (outputs,), once=True)) if bias else None,
    )


def _parts(matrices: Sequence[Matrix], kind: str, inner: tuple[int, ...], mesh: Mesh) -> list[Part]:
    totals: dict[str, int] = {}
    for matrix in matrices:
        totals[matrix.name] = totals.get(matrix.name, 0) + matrix.outputs
    parts, seen = [], dict.fromkeys(totals, 0)
    for m in matrices:
        part = Part(
            f"{m.name}.{kind}", (totals[m.name], *inner), halves=m.halves, transposed=m.transposed and kind == "weight"
        )
        if m.interleave is None:
            parts.append(replace(part, cut=0, first=seen[m.name], rows=m.outputs, copies=m.copies))
        else:
            mine = m.outputs // m.interleave.size * m.copies // mesh.size
            runs = m.interleave.runs(mesh.rank // m.copies * mine, mine)
            parts += [replace(part, first=first, rows=rows) for first, rows in runs]
        seen[m.name] += m.outputs
    return parts
