"""Products of few rows with a weight, read once at the speed of memory from the layout of the checkpoint.

More rows than `TOKENS` are torch's: they are bound by arithmetic, and its library reorders the weight for that.
"""

import ctypes

import torch
from torch import Tensor

from quire.ops.linear import LinearSpec, linear
from quire.ops.registry import provide
from quire.platforms import native

TOKENS = (1, 16)
DTYPES = {"float32": 0, "bfloat16": 1}

_linear = native.load()[0].qcpu_linear
_linear.restype = None
_linear.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 4 + [ctypes.c_int]


def _refuses(spec: LinearSpec) -> str | None:
    if spec.device != "cpu":
        return f"written for the CPU, not for {spec.device}"
    return None if spec.dtype in DTYPES else f"has no {spec.dtype}"


@provide("cpu", linear, _refuses, tokens=TOKENS)
def cpu_linear(x: Tensor, weight: Tensor, bias: Tensor | None, spec: LinearSpec) -> Tensor:
    """See `linear`. Each output is one dot product in float32, in the same order whatever the number of rows."""
    if x.stride(1) != 1:
        x = x.contiguous()
    assert weight.is_contiguous(), "weights lie as they were loaded"
    rows = len(x)
    out = torch.empty(rows, spec.outputs, dtype=x.dtype)
    _linear(
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        rows,
        spec.inputs,
        spec.outputs,
        x.stride(0),
        DTYPES[spec.dtype],
    )
    return out
