"""Kernels that go over rows of activations: RMS norms and gates."""

import ctypes

import torch
from torch import Tensor

from quire.ops.activation import GateSpec, gated_activation
from quire.ops.norm import NormSpec, add_rms_norm, rms_norm
from quire.ops.registry import provide
from quire.platforms import native

_library = native.load()[0]
_norm, _gate = _library.qcpu_norm, _library.qcpu_gate
_norm.restype = _gate.restype = None
_norm.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_long] * 2 + [ctypes.c_double] * 2 + [ctypes.c_int]
_gate.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_long] * 2 + [ctypes.c_int] * 2


def _refuses(spec: NormSpec | GateSpec) -> str | None:
    if spec.device != "cpu":
        return f"written for the CPU, not for {spec.device}"
    return None if spec.dtype in native.NUMBERS else f"has no {spec.dtype}"


@provide("cpu", rms_norm, _refuses, batch_invariant=True)
def cpu_rms_norm(x: Tensor, weight: Tensor, spec: NormSpec) -> Tensor:
    """See `rms_norm`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _normed(x, None, weight, out, None, spec)
    return out


@provide("cpu", add_rms_norm, _refuses, batch_invariant=True)
def cpu_add_rms_norm(residual: Tensor, delta: Tensor, weight: Tensor, spec: NormSpec) -> tuple[Tensor, Tensor]:
    """See `add_rms_norm`."""
    residual, delta = residual.contiguous(), delta.contiguous()
    normed, total = torch.empty_like(residual), torch.empty_like(residual)
    _normed(residual, delta, weight, normed, total, spec)
    return normed, total


def _normed(
    x: Tensor, delta: Tensor | None, weight: Tensor, normed: Tensor, total: Tensor | None, spec: NormSpec
) -> None:
    _norm(
        x.data_ptr(),
        None if delta is None else delta.data_ptr(),
        weight.data_ptr(),
        normed.data_ptr(),
        None if total is None else total.data_ptr(),
        x.numel() // spec.size,
        spec.size,
        spec.eps,
        spec.offset,
        native.NUMBERS[spec.dtype],
    )


@provide("cpu", gated_activation, _refuses, batch_invariant=True)
def cpu_gated_activation(gate_up: Tensor, spec: GateSpec) -> Tensor:
    """See `gated_activation`."""
    gate_up = gate_up.contiguous()
    out = torch.empty(len(gate_up), spec.inner, dtype=gate_up.dtype)
    gelu = spec.activation == "gelu_tanh"
    _gate(gate_up.data_ptr(), out.data_ptr(), len(gate_up), spec.inner, gelu, native.NUMBERS[spec.dtype])
    return out
