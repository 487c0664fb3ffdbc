"""Weights packed for the compiled kernels, in the model's dtype or quantized, and products with them.

One layout serves any number of rows (native/linear.h). Where weights are quantized so are activations, to 8 bits: per
token, or with 4-bit weights per token and group.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.ops.registry import provide
from quire.ops.stored import StoredSpec, Wanted, offer, stored_linear
from quire.platforms import native
from quire.platforms.ahead import HUGE_PAGE, ahead

FORMATS = {None: native.NUMBERS, 8: dict.fromkeys(native.NUMBERS, 2), 4: dict.fromkeys(native.NUMBERS, 3)}
GROUPS = (32, 64, 128, 256)
PANEL = 32
"""Outputs that share a panel, at most: what is read by itself is whole panels."""


class Matrix(ctypes.Structure):
    """`Matrix` of native/linear.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("outputs", ctypes.c_long),
        ("inputs", ctypes.c_long),
        ("format", ctypes.c_int),
        ("group", ctypes.c_int),
    )


_library = native.load()[0]
_pointer, _long, _int = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
_matrix = ctypes.POINTER(Matrix)
_library.qcpu_packed_bytes.restype = ctypes.c_long
_library.qcpu_packed_bytes.argtypes = [_matrix]
_library.qcpu_put.argtypes = [_matrix, _long, _long, _pointer, _long, _int]
_library.qcpu_put_quantized.argtypes = [_matrix, _long, _long, _pointer, _pointer]
_library.qcpu_get.argtypes = [_matrix, _pointer, _long, _pointer, _int]
_library.qcpu_linear.argtypes = [_matrix, _pointer, _long, _long, _pointer, _pointer, _int]


@dataclass(frozen=True, slots=True)
class Packed:
    """Panels of neighbouring outputs. See `Storage`; `bits` and `group` as in `Wanted`."""

    outputs: int
    inputs: int
    bits: int | None
    group: int
    dtype: str

    def allocate(self) -> Tensor:
        """Zeroed bytes; large ones on huge pages, without which each core waits for its page table."""
        size: int = _library.qcpu_packed_bytes(self.matrix(None))
        if size < HUGE_PAGE:
            return torch.zeros(size, dtype=torch.uint8)
        return torch.frombuffer(ahead().take(size), dtype=torch.uint8)

    def put(self, data: Tensor, first: int, values: Tensor) -> None:
        """See `Storage`."""
        values = values.contiguous()
        dtype = native.number(values.dtype)
        _library.qcpu_put(self.matrix(data), first, len(values), values.data_ptr(), self.inputs, dtype)

    def put_quantized(self, data: Tensor, first: int, values: Tensor, scales: Tensor) -> None:
        """See `Storage`."""
        values, scales = values.contiguous(), scales.float().contiguous()
        _library.qcpu_put_quantized(self.matrix(data), first, len(values), values.data_ptr(), scales.data_ptr())

    def rows(self, data: Tensor, ids: Tensor) -> Tensor:
        """See `Storage`."""
        ids = ids.long().contiguous()
        out = torch.empty(len(ids), self.inputs, dtype=getattr(torch, self.dtype))
        _library.qcpu_get(self.matrix(data), ids.data_ptr(), len(ids), out.data_ptr(), native.NUMBERS[self.dtype])
        return out

    def matrix(self, data: Tensor | None) -> Matrix:
        """The weight as the library sees it."""
        address = None if data is None else data.data_ptr()
        return Matrix(address, self.outputs, self.inputs, FORMATS[self.bits][self.dtype], self.group)


@offer("cpu")
def _packed(wanted: Wanted) -> Packed | None:
    if wanted.device != "cpu" or wanted.dtype not in native.NUMBERS or wanted.group not in GROUPS:
        return None
    if wanted.matrices > 1 and (wanted.outputs // wanted.matrices % PANEL or wanted.inputs % PANEL):
        return None
    return Packed(wanted.outputs, wanted.inputs, wanted.bits, wanted.group, wanted.dtype)


def _refuses(spec: StoredSpec) -> str | None:
    return None if isinstance(spec.storage, Packed) else "reads weights that it packed itself"


@provide("cpu", stored_linear, _refuses, batch_invariant=True)
def cpu_linear(x: Tensor, weight: Tensor, bias: Tensor | None, spec: StoredSpec) -> Tensor:
    """See `stored_linear`. Each output is one sum in the order of the inputs, whatever the number of rows."""
    storage = spec.storage
    assert isinstance(storage, Packed)
    if x.stride(1) != 1:
        x = x.contiguous()
    rows = x.shape[0]
    out = torch.empty(rows, storage.outputs, dtype=x.dtype)
    _library.qcpu_linear(
        storage.matrix(weight),
        x.data_ptr(),
        x.stride(0),
        rows,
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        native.NUMBERS[spec.dtype],
    )
    return out
