"""Norms by torch's operators, where the weight is applied as it is."""

import torch.nn.functional as F
from torch import Tensor

from quire.ops.norm import LayerNormSpec, NormSpec, add_layer_norm, add_rms_norm, layer_norm, rms_norm
from quire.ops.registry import provide


def _refuses(spec: NormSpec) -> str | None:
    return "cannot add an offset to the weight" if spec.offset else None


@provide("torch_native", rms_norm, _refuses, batch_invariant=True)
def native_rms_norm(x: Tensor, weight: Tensor, spec: NormSpec) -> Tensor:
    """See `rms_norm`."""
    return F.rms_norm(x, (spec.size,), weight, spec.eps)


@provide("torch_native", add_rms_norm, _refuses, batch_invariant=True)
def native_add_rms_norm(residual: Tensor, delta: Tensor, weight: Tensor, spec: NormSpec) -> tuple[Tensor, Tensor]:
    """See `add_rms_norm`."""
    total = residual + delta
    return F.rms_norm(total, (spec.size,), weight, spec.eps), total


@provide("torch_native", layer_norm, batch_invariant=True)
def native_layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, spec: LayerNormSpec) -> Tensor:
    """See `layer_norm`."""
    return F.layer_norm(x, (spec.size,), weight, bias, spec.eps)


@provide("torch_native", add_layer_norm, batch_invariant=True)
def native_add_layer_norm(
    residual: Tensor, delta: Tensor, weight: Tensor | None, bias: Tensor | None, spec: LayerNormSpec
) -> tuple[Tensor, Tensor]:
    """See `add_layer_norm`."""
    total = residual + delta
    return F.layer_norm(total, (spec.size,), weight, bias, spec.eps), total
