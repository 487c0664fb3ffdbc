"""Where a parameter's values come from.

A `Weight` carries its recipe: the parts of checkpoint tensors that it is stacked from, and how each part is cut over
the ranks. From recipes alone follow sliced reads, dummy weights and the reports of missing and left-over tensors.
Layers write recipes, `load.py` and `dummy.py` follow them.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from quire.loading.part_storage import PartStorage
from quire.quantization.storage import Storage


@dataclass(frozen=True, slots=True)
class Span:
    """`length` entries from `start` along one dimension of a checkpoint tensor, `zeros` of padding after them."""

    start: int
    length: int
    zeros: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """One checkpoint tensor's contribution to a parameter, stacked along dimension 0 with the other parts.

    Attributes:
        name: of the checkpoint tensor.
        shape: of the whole checkpoint tensor.
        cut: dimension that is cut over the ranks; None gives every rank all of it.
        first, rows: only these rows (dimension 0) belong to the part; rows None means all. Fused tensors have several
            parts.
        copies: so many neighbouring ranks get the same piece (KV heads fewer than ranks).
        pad: zeros appended along `cut` so that it divides over the ranks (vocabulary).
        once: rank 0 alone gets the values, the others zeros (the bias of a sum over ranks).
        stacked: the checkpoint tensor has one dimension more, (n, rows, ...), and `shape` is (n * rows, ...).
        transposed: the checkpoint holds the matrix as (columns, rows).
        columns: (first, how many): only these columns (dimension 1) belong to the part; None means all.
        halves: (head_dim, rotary_dim) of heads whose values are rotated in neighbouring pairs: the rows of each head
            are put in the order in which kernels rotate, the first of all pairs before the second of all pairs.
            Queries and keys so ordered have the same products.
        plus: added to all values; the sum is worked out in float32.
    """

    name: str
    shape: tuple[int, ...]
    cut: int | None = None
    first: int = 0
    rows: int | None = None
    copies: int = 1
    pad: int = 0
    once: bool = False
    stacked: bool = False
    transposed: bool = False
    columns: tuple[int, int] | None = None
    halves: tuple[int, int] | None = None
    plus: float = 0.0

    @property
    def unit(self) -> int:
        """Rows that `changed` wants together."""
        return 1 if self.halves is None else self.halves[0]

    @property
    def is_changed(self) -> bool:
        """Whether values differ from the checkpoint's."""
        return self.halves is not None or self.plus != 0

    def changed(self, values: Tensor) -> Tensor:
        """Rows of the checkpoint tensor, whole units, as the parameter wants them."""
        if self.halves is not None:
            head_dim, rotary = self.halves
            heads = values.reshape(-1, head_dim, *values.shape[1:])
            first, second, rest = heads[:, :rotary:2], heads[:, 1:rotary:2], heads[:, rotary:]
            values = torch.cat([first, second, rest], dim=1).flatten(0, 1)
        return values.float() + self.plus if self.plus else values

    def spans(self, rank: int, size: int) -> list[Span]:
        """What rank `rank` of `size` takes, per dimension of the checkpoint tensor."""
        whole = [Span(0, n) for n in self.shape]
        whole[0] = Span(self.first, self.shape[0] - self.first if self.rows is None else self.rows)
        if self.columns is not None:
            whole[1] = Span(*self.columns)
        if self.once and rank:
            whole[0] = Span(self.first, 0, whole[0].length)
        if self.cut is not None:
            span = whole[self.cut]
            pieces = size // self.copies
            n = (span.length + self.pad) // pieces
            begin = min(rank // self.copies * n, span.length)
            length = min(n, span.length - begin)
            whole[self.cut] = Span(span.start + begin, length, n - length)
        return whole

    def taken(self, rank: int, size: int) -> tuple[int, ...]:
        """Shape of what rank `rank` of `size` holds, padding included."""
        return tuple(span.length + span.zeros for span in self.spans(rank, size))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a parameter is filled.

    Attributes:
        parts: in order, stacked along dimension 0.
        center: value around which dummy weights scatter (1 for norms).
        again: tensors that hold the same values once more in some checkpoints (the head of tied models).
        fused: the parts in checkpoints that hold the same values under other names (experts as one tensor).
    """

    parts: tuple[Part, ...]
    center: float = 0.0
    again: tuple[str, ...] = ()
    fused: tuple[Part, ...] = ()

    def fitting(self, names: Container[str]) -> "Recipe":
        """This recipe for a checkpoint whose tensors have `names`."""
        return replace(self, parts=self.fused, fused=()) if self.fused and self.fused[0].name in names else self

    def shape(self, rank: int, size: int) -> tuple[int, ...]:
        """Shape of the parameter on rank `rank` of `size`."""
        shapes = [part.taken(rank, size) for part in self.parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


class Weight(nn.Parameter):
    """A parameter of a served model: no gradient, and a recipe.

    Attributes:
        stored: how the values are stored; None is as a tensor of the recipe's shape.
        held: how each part of the recipe gets into a quantized checkpoint's weight; empty for all others.
    """

    recipe: Recipe
    stored: Storage | None
    held: tuple[PartStorage, ...]

    def __new__(
        cls, data: Tensor, recipe: Recipe, stored: Storage | None = None, held: tuple[PartStorage, ...] = ()
    ) -> "Weight":
        """Wrap `data`, which is filled later by its `recipe`."""
        weight = torch.Tensor._make_subclass(cls, data, False)
        weight.recipe = recipe
        weight.stored = stored
        weight.held = held
        return weight

    @property
    def rows(self) -> int:
        """Entries along dimension 0 of the recipe's shape on this rank."""
        return len(self) if self.stored is None else self.stored.outputs

    @property
    def columns(self) -> int:
        """Entries along dimension 1."""
        return self.shape[1] if self.stored is None else self.stored.inputs


class Parametrised(Protocol):
    """A model, as far as loading sees it."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """All parameters, shared ones once."""
        ...


def weights_of(model: Parametrised) -> list[Weight]:
    """Every parameter of `model` that has a recipe, shared ones once."""
    return [parameter for parameter in model.parameters() if isinstance(parameter, Weight)]
