"""Products with weights of 4 and 8 bits, each number of rows by the kernel that is fastest for it.

One row is a kernel that streams the weights (`gemv`). Of more rows, floats of 8 bits meet activations of 8 bits in the
library (`narrowed`); others keep what they are up to a hundred rows (`skinny`), and of more become values once for all
rows (`unpacked`), or meet activations of 8 bits if they are such integers. Shifts of groups meet sums of activations,
numbers of columns the activations themselves.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.triton.dense.activation import triton_gated_activation
from quire.kernels.triton.dense.quantized import gemv, narrowed, skinny, unpacked
from quire.kernels.triton.dense.quantized.weight import Weight, unread
from quire.ops.registry import provide
from quire.ops.stored import StoredSpec, stored_linear
from quire.ops.stored_gate import StoredGateSpec, stored_gate_up
from quire.quantization.scaled import Scaled

FEW = 128
"""Rows up to which weights stay as they are, unless the library takes them."""
DTYPES = ("bfloat16", "float16", "float32")


def _refuses(spec: StoredSpec) -> str | None:
    if spec.dtype not in DTYPES:
        return f"activations of {spec.dtype}; only {', '.join(DTYPES)}"
    return unread(spec.storage)


@provide("triton", stored_linear, _refuses)
def triton_stored_linear(x: Tensor, weight: Tensor, bias: Tensor | None, spec: StoredSpec) -> Tensor:
    """See `stored_linear`."""
    rows, seen = len(x), _seen(spec, weight)
    if not rows:
        return torch.empty((0, seen.outputs), dtype=x.dtype, device=x.device)
    x = _in_order(x, seen)
    if rows == 1:
        return _shifted(gemv.product(x, seen, bias, ""), x, seen)
    if narrowed.takes(seen, rows):
        return narrowed.product(x, seen, bias)
    return _shifted(skinny.product(x, seen, bias, ""), x, seen) if rows <= FEW else unpacked.product(x, seen, bias)


def _shifted(product: Tensor, x: Tensor, weight: Weight) -> Tensor:
    """The product with what shifts add to it: the sum of each group's activations times the group's shift."""
    shifts = weight.shifts
    if shifts is None:
        return product
    groups, group = shifts.shape[1], weight.storage.form.group or weight.inputs
    missing = groups * group - weight.inputs
    whole = F.pad(x, (0, missing)) if missing else x
    sums = whole.view(len(x), groups, group).sum(2, dtype=torch.float32)
    return torch.addmm(product, sums, shifts.T).to(x.dtype)


def _refuses_gate(spec: StoredGateSpec) -> str | None:
    storage = spec.product.storage
    if isinstance(storage, Scaled) and storage.form.shifted:
        return "leaves products with shifts of groups to `stored_linear`"
    return _refuses(spec.product)


@provide("triton", stored_gate_up, _refuses_gate)
def triton_stored_gate_up(x: Tensor, weight: Tensor, bias: Tensor | None, spec: StoredGateSpec) -> Tensor:
    """See `stored_gate_up`."""
    rows, seen = len(x), _seen(spec.product, weight)
    if rows == 1:
        return gemv.product(_in_order(x, seen), seen, bias, spec.gate.activation)
    if 0 < rows <= FEW and not narrowed.takes(seen, rows):
        return skinny.product(_in_order(x, seen), seen, bias, spec.gate.activation)
    made: Tensor = triton_stored_linear(x, weight, bias, spec.product)
    gated: Tensor = triton_gated_activation(made, spec.gate)
    return gated


def _in_order(x: Tensor, weight: Weight) -> Tensor:
    """Activations times the numbers of the weight's columns, and as these lie.

    The reference multiplies values with those numbers instead. Here activations are rounded once more, and in float16
    they may overflow.
    """
    x = x if weight.columns is None else (x.float() * weight.columns).to(x.dtype)
    return x if weight.order is None else x.index_select(1, weight.order)


def _seen(spec: StoredSpec, weight: Tensor) -> Weight:
    assert isinstance(spec.storage, Scaled), "unread() refuses all others"
    return Weight(spec.storage, weight)
