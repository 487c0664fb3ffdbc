"""Functions of single rows. Torch computes most elements of a tensor by vectors and the last ones by themselves, which
rounds an exponential otherwise: so each row is a tensor of its own.
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


@provide("batch_invariant", gated_activation, batch_invariant=True)
def invariant_gated_activation(gate_up: Tensor, spec: GateSpec) -> Tensor:
    """See `gated_activation`."""
    return _each(len(gate_up), lambda row: gated_activation(gate_up[row].contiguous(), spec))


@provide("batch_invariant", pointwise, batch_invariant=True)
def invariant_pointwise(x: Tensor, spec: ActivationSpec) -> Tensor:
    """See `pointwise`."""
    return _each(len(x), lambda row: pointwise(x[row].contiguous(), spec))


@provide("batch_invariant", draw_tokens, capturable=False, batch_invariant=True)
def invariant_draw_tokens(
    logits: Tensor, rows: Tensor, known: Tensor, table: RowTable, groups: tuple[Group, ...] | None = None
) -> Tensor:
    """See `draw_tokens`. The table says all there is to know, so `groups` are not looked at."""
    return _each(len(rows), lambda row: draw_tokens(logits[row].contiguous(), rows[row], known, table), 1)
