"""Functions of single rows. On CPUs torch computes most elements of a tensor by vectors and the last ones by
themselves, which rounds an exponential otherwise: so there each row is a tensor of its own. On GPUs all elements are
computed alike, and only what looks at whole rows may go about it otherwise where there are many.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quire.ops.activation import ActivationSpec, GateSpec, gated_activation, pointwise
from quire.ops.draw import Group, RowTable, draw_tokens
from quire.ops.registry import provide


def _each(count: int, one: Callable[[slice], Tensor], dim: int = 0) -> Tensor:
    """`one` of each row, joined along `dim`."""
    return torch.cat([one(slice(i, i + 1)) for i in range(count)] or [one(slice(0, 0))], dim)


def _elements(x: Tensor, one: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of single elements, of the rows of `x`."""
    return one(x) if x.is_cuda else _each(len(x), lambda row: one(x[row].contiguous()))


@provide("batch_invariant", gated_activation, batch_invariant=True)
def invariant_gated_activation(gate_up: Tensor, spec: GateSpec) -> Tensor:
    """See `gated_activation`."""
    return _elements(gate_up, lambda some: gated_activation(some, spec))


@provide("batch_invariant", pointwise, batch_invariant=True)
def invariant_pointwise(x: Tensor, spec: ActivationSpec) -> Tensor:
    """See `pointwise`."""
    return _elements(x, lambda some: pointwise(some, spec))


@provide("batch_invariant", draw_tokens, capturable=False, batch_invariant=True)
def invariant_draw_tokens(
    logits: Tensor, rows: Tensor, known: Tensor, table: RowTable, groups: tuple[Group, ...] | None = None
) -> Tensor:
    """See `draw_tokens`. The table says all there is to know, so `groups` are not looked at."""
    return _each(len(rows), lambda row: draw_tokens(logits[row].contiguous(), rows[row], known, table), 1)
