"""Products of up to 128 rows, alone and fused with the norm before them and the gate after them.

One row is a kernel that streams the weights (`gemv`), norm and gate included; up to 128 rows the matrix units take
over (`skinny`) and the norm is a kernel of its own. Above, the vendor's library is as good.
"""

import torch
from torch import Tensor

from quire.kernels.triton import tuned
from quire.kernels.triton.dense import gemv, skinny
from quire.kernels.triton.dense.norm import triton_add_rms_norm, triton_rms_norm
from quire.ops.block import NormGateSpec, NormLinearSpec, norm_gate_up, norm_linear
from quire.ops.linear import LinearSpec, linear
from quire.ops.norm import NormSpec
from quire.ops.registry import Tokens, provide

MANY = 128
"""Rows up to which products with a gate are faster here than by the vendor's library."""
HALVES = ("bfloat16", "float16")


def _refuses(spec: LinearSpec | NormLinearSpec | NormGateSpec) -> str | None:
    product = spec if isinstance(spec, LinearSpec) else spec.linear
    if spec.dtype not in HALVES:
        return f"{spec.dtype} weights; only {' and '.join(HALVES)}"
    if product.inputs % 8 or product.outputs % 8:
        return f"a product of {product.inputs} inputs and {product.outputs} outputs; both must be multiples of 8"
    return None


def _tokens(spec: LinearSpec) -> Tokens:
    small = spec.outputs * spec.inputs <= skinny.SMALL
    facts = {"inputs": spec.inputs, "outputs": spec.outputs, "small": int(small)}
    return 1, int(tuned.choose("own products", torch.device(spec.device), facts)["rows"])


@provide("triton", linear, _refuses, tokens=_tokens)
def triton_linear(x: Tensor, weight: Tensor, bias: Tensor | None, spec: LinearSpec) -> Tensor:
    """See `linear`."""
    if not x.shape[0]:
        return x.new_empty((0, spec.outputs))
    if x.shape[0] == 1:
        return gemv.product(x, weight, bias, "")
    return skinny.product(x, weight, bias, "")


@provide("triton", norm_linear, _refuses, tokens=(1, 1))
def triton_norm_linear(
    residual: Tensor,
    delta: Tensor | None,
    norm_weight: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: NormLinearSpec,
) -> tuple[Tensor, Tensor]:
    """See `norm_linear`."""
    if residual.shape[0] == 1:
        norm = _norm(residual, delta, norm_weight, spec.norm)
        return gemv.product(residual, weight, bias, "", norm), residual if norm.total is None else norm.total
    normed, total = _joined(residual, delta, norm_weight, spec.norm)
    return triton_linear(normed, weight, bias, spec.linear), total


@provide("triton", norm_gate_up, _refuses, tokens=(1, MANY))
def triton_norm_gate_up(
    residual: Tensor,
    delta: Tensor | None,
    norm_weight: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: NormGateSpec,
) -> tuple[Tensor, Tensor]:
    """See `norm_gate_up`."""
    kind = spec.gate.activation
    if not residual.shape[0]:
        return residual.new_empty((0, spec.gate.inner)), residual
    if residual.shape[0] == 1:
        norm = _norm(residual, delta, norm_weight, spec.norm)
        return gemv.product(residual, weight, bias, kind, norm), residual if norm.total is None else norm.total
    normed, total = _joined(residual, delta, norm_weight, spec.norm)
    return skinny.product(normed, weight, bias, kind), total


def _joined(residual: Tensor, delta: Tensor | None, weight: Tensor, spec: NormSpec) -> tuple[Tensor, Tensor]:
    if delta is None:
        return triton_rms_norm(residual, weight, spec), residual
    normed, total = triton_add_rms_norm(residual, delta, weight, spec)
    return normed, total


def _norm(residual: Tensor, delta: Tensor | None, weight: Tensor, spec: NormSpec) -> gemv.Norm:
    total = None if delta is None else torch.empty_like(residual, memory_format=torch.contiguous_format)
    return gemv.Norm(delta, weight, total, spec.eps, spec.offset)
