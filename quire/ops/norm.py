"""RMS norm and layer norm, alone and with the residual addition that always comes before them; RMS norm with a gate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal


@dataclass(frozen=True, slots=True)
class NormSpec:
    """An RMS norm over `size` values. `offset` is added to the weight before it is applied (1 for Gemma)."""

    size: int
    eps: float
    offset: float = 0.0
    dtype: str = "float32"
    device: str = "cpu"


def _norm_samples() -> Iterator[tuple[NormSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for rows, size, offset in ((1, 8, 0.0), (5, 96, 0.0), (3, 64, 1.0), (0, 16, 0.0)):
            spec = NormSpec(size, 1e-6, offset, dtype)
            yield spec, {"x": normal(dtype, rows, size), "weight": normal(dtype, size, seed=1), "spec": spec}


def _add_norm_samples() -> Iterator[tuple[NormSpec, dict[str, Any]]]:
    for spec, inputs in _norm_samples():
        x = inputs.pop("x")
        yield spec, {"residual": x, "delta": normal(spec.dtype, *x.shape, seed=2), **inputs}


@op(samples=_norm_samples, batch_invariant=True)
def rms_norm(x: Tensor, weight: Tensor, spec: NormSpec) -> Tensor:
    """Each row of `x` over its root mean square, times the weight; computed in float32.

    Args:
        x: (..., size), any float dtype.
        weight: (size,).

    Returns: like `x`. Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + spec.eps)
    return (scaled * (weight.float() + spec.offset)).to(x.dtype)


@op(samples=_add_norm_samples, batch_invariant=True)
def add_rms_norm(residual: Tensor, delta: Tensor, weight: Tensor, spec: NormSpec) -> tuple[Tensor, Tensor]:
    """residual + delta, normed and as it is: `(normed, sum)`, both (tokens, size) in the dtype of `residual`."""
    total = residual + delta
    normed: Tensor = rms_norm(total, weight, spec)
    return normed, total


@dataclass(frozen=True, slots=True)
class LayerNormSpec:
    """A layer norm over `size` values."""

    size: int
    eps: float
    dtype: str = "float32"
    device: str = "cpu"


def _layer_norm_samples() -> Iterator[tuple[LayerNormSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for rows, size, weight, bias in (
            (1, 8, True, True),
            (5, 96, True, False),
            (3, 64, False, False),
            (0, 16, True, True),
        ):
            spec = LayerNormSpec(size, 1e-5, dtype)
            yield (
                spec,
                {
                    "x": normal(dtype, rows, size) + 1,
                    "weight": normal(dtype, size, seed=1) if weight else None,
                    "bias": normal(dtype, size, seed=3) if bias else None,
                    "spec": spec,
                },
            )


def _add_layer_norm_samples() -> Iterator[tuple[LayerNormSpec, dict[str, Any]]]:
    for spec, inputs in _layer_norm_samples():
        x = inputs.pop("x")
        yield spec, {"residual": x, "delta": normal(spec.dtype, *x.shape, seed=2), **inputs}


@op(samples=_layer_norm_samples, batch_invariant=True)
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, spec: LayerNormSpec) -> Tensor:
    """Each row of `x` less its mean, over its standard deviation, times the weight, plus the bias; in float32.

    Args:
        x: (tokens, size), any float dtype.
        weight, bias: (size,), or None where there is none.

    Returns: like `x`. Ba et al., "Layer Normalization", 2016.
    """
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    scaled = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + spec.eps)
    if weight is not None:
        scaled = scaled * weight.float()
    return (scaled if bias is None else scaled + bias.float()).to(x.dtype)


@op(samples=_add_layer_norm_samples, batch_invariant=True)
def add_layer_norm(
    residual: Tensor, delta: Tensor, weight: Tensor | None, bias: Tensor | None, spec: LayerNormSpec
) -> tuple[Tensor, Tensor]:
    """residual + delta, normed and as it is: `(normed, sum)`, both (tokens, size) in the dtype of `residual`."""
    total = residual + delta
    normed: Tensor = layer_norm(total, weight, bias, spec)
    return normed, total


@dataclass(frozen=True, slots=True)
class GatedNormSpec:
    """RMS norms over `size` neighbouring values each, of what is multiplied with silu of a gate.

    Attributes:
        groups: norms in a row.
        gate_first: whether the gate comes before the norm.
    """

    size: int
    groups: int
    eps: float
    gate_first: bool
    dtype: str = "float32"
    device: str = "cpu"


def _gated_samples() -> Iterator[tuple[GatedNormSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for rows, size, groups, gate_first in ((1, 8, 1, True), (5, 96, 3, True), (3, 64, 4, False), (0, 16, 2, False)):
            spec = GatedNormSpec(size, groups, 1e-6, gate_first, dtype)
            width = groups * size
            yield (
                spec,
                {
                    "x": normal(dtype, rows, width),
                    "gate": normal(dtype, rows, width + 8, seed=1)[:, 8:],
                    "weight": normal(dtype, width if gate_first else size, seed=2),
                    "spec": spec,
                },
            )


@op(samples=_gated_samples)
def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, spec: GatedNormSpec) -> Tensor:
    """norm(x) * weight * silu(gate), or norm(x * silu(gate)) * weight; computed in float32.

    Args:
        x, gate: (tokens, groups * size); rows of the gate may lie apart.
        weight: (groups * size,), or (size,) for all groups.

    Returns: like `x`.
    """
    wide, open_ = (y.float().reshape(len(y), spec.groups, spec.size) for y in (x, F.silu(gate.float())))
    if spec.gate_first:
        wide = wide * open_
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + spec.eps) * weight.float().view(-1, spec.size)
    return (wide if spec.gate_first else wide * open_).flatten(1).to(x.dtype)
