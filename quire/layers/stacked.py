"""Products with a matrix whose parts are stored each in its own way: an op for each part, results side by side."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quire.ops.linear import LinearSpec, linear
from quire.ops.registry import Op
from quire.ops.stored import StoredSpec, stored_linear
from quire.quantization.stacked import Plain, Stacked


def beside(
    stack: Stacked, spec: StoredSpec, op: Callable[[Op, Any], Callable[..., Any]]
) -> Callable[[Tensor, Tensor, Tensor | None, object], Tensor]:
    """A function that takes what `stored_linear` takes and gives the same.

    Args:
        spec: of the product with all parts.
        op: chooses who serves an op, given its spec.
    """
    chosen: list[tuple[LinearSpec | StoredSpec, Callable[..., Any]]] = []
    for member in stack.members:
        if isinstance(member, Plain):
            plain = LinearSpec(member.inputs, member.outputs, spec.bias, spec.dtype, spec.device)
            chosen.append((plain, op(linear, plain)))
        else:
            stored = StoredSpec(member, spec.bias, spec.dtype, spec.device)
            chosen.append((stored, op(stored_linear, stored)))

    def product(x: Tensor, weight: Tensor, bias: Tensor | None, _: object) -> Tensor:
        found = []
        for (row, member, data), (own, multiply) in zip(stack.each(weight), chosen, strict=True):
            rows = member.matrix(data) if isinstance(member, Plain) else data
            found.append(multiply(x, rows, None if bias is None else bias[row : row + member.outputs], own))
        return torch.cat(found, dim=1)

    return product
