"""Weights packed for the compiled kernels, in the model's dtype or quantized, and products with them.

One layout serves any number of rows (native/linear.h). Where weights are quantized so are activations, to 8 bits: per
token, or with 4-bit weights per token and group.
"""

import ctypes
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quire.ops.registry import provide
from quire.ops.stored import StoredSpec, WeightSpec, offer, stored_linear
from quire.platforms import native
from quire.platforms.ahead import HUGE_PAGE, ahead
from quire.quantization.storage import Storage

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
        *((name, ctypes.c_int) for name in ("format", "group", "scales", "shifted", "zero")),
    )


class _Operands(ctypes.Structure):
    """`Operands` of native/linear.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_long),
        ("rows", ctypes.c_long),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_long),
        ("dtype", ctypes.c_int),
    )


_library = native.load()[0]
_pointer, _long, _int = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
_matrix = ctypes.POINTER(Matrix)
_library.qcpu_packed_bytes.restype = ctypes.c_long
_library.qcpu_packed_bytes.argtypes = [_matrix]
_library.qcpu_put.argtypes = [_matrix, _long, _long, _pointer, _long, _int]
_library.qcpu_put_quantized.argtypes = [_matrix, _long, _long, _pointer, _pointer]
_library.qcpu_get.argtypes = [_matrix, _pointer, _long, _pointer, _int]
_library.qcpu_linear.argtypes = [_matrix, ctypes.POINTER(_Operands), _pointer]


class Panels(ABC):
    """A weight in panels of neighbouring outputs, as the library's products read it. See `Storage`."""

    __slots__ = ()
    outputs: int
    inputs: int
    dtype: str

    @abstractmethod
    def matrix(self, data: Tensor | None) -> Matrix:
        """The weight as the library sees it."""

    @abstractmethod
    def part(self, count: int) -> Storage:
        """One of `count` equal weights, whose rows follow each other in whole panels."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        size: int = _library.qcpu_packed_bytes(self.matrix(None))
        return size

    def allocate(self) -> Tensor:
        """Zeroed bytes; large ones on huge pages, without which each core waits for its page table."""
        size = self.nbytes
        if size < HUGE_PAGE:
            return torch.zeros(size, dtype=torch.uint8)
        return torch.frombuffer(ahead().take(size), dtype=torch.uint8)

    def rows(self, data: Tensor, ids: Tensor) -> Tensor:
        """See `Storage`."""
        ids = ids.long().contiguous()
        out = torch.empty(len(ids), self.inputs, dtype=getattr(torch, self.dtype))
        _library.qcpu_get(self.matrix(data), ids.data_ptr(), len(ids), out.data_ptr(), native.NUMBERS[self.dtype])
        return out


@dataclass(frozen=True, slots=True)
class Packed(Panels):
    """Values, or integers with a scale a row (8 bits) or a group (4); `bits` and `group` as in `WeightSpec`."""

    outputs: int
    inputs: int
    bits: int | None
    group: int
    dtype: str

    def put(self, data: Tensor, first: int, values: Tensor) -> None:
        """See `Storage`."""
        values = (values if native.number(values.dtype) is not None else values.float()).contiguous()
        dtype = native.number(values.dtype)
        _library.qcpu_put(self.matrix(data), first, len(values), values.data_ptr(), self.inputs, dtype)

    def put_quantized(self, data: Tensor, first: int, values: Tensor, scales: Tensor) -> None:
        """See `Integers`; of 8 bits alone. What has groups is read into `Grouped`."""
        if self.bits != 8:
            raise NotImplementedError(f"rows of {self.bits} bits are put by put")
        values, scales = values.contiguous(), scales.float().contiguous()
        _library.qcpu_put_quantized(self.matrix(data), first, len(values), values.data_ptr(), scales.data_ptr())

    def part(self, count: int) -> "Packed":
        """See `Panels`."""
        return replace(self, outputs=self.outputs // count)

    def matrix(self, data: Tensor | None) -> Matrix:
        """See `Panels`."""
        address = None if data is None else data.data_ptr()
        return Matrix(address, self.outputs, self.inputs, FORMATS[self.bits][self.dtype], self.group, zero=8)


@offer("cpu")
def _packed(wanted: WeightSpec) -> Packed | None:
    if wanted.device != "cpu" or wanted.dtype not in native.NUMBERS or wanted.group not in GROUPS:
        return None
    if wanted.matrices > 1 and (wanted.outputs // wanted.matrices % PANEL or wanted.inputs % PANEL):
        return None
    return Packed(wanted.outputs, wanted.inputs, wanted.bits, wanted.group, wanted.dtype)


def _refuses(spec: StoredSpec) -> str | None:
    return None if isinstance(spec.storage, Panels) else "reads weights that it packed itself"


@provide("cpu", stored_linear, _refuses, batch_invariant=True)
def cpu_linear(x: Tensor, weight: Tensor, bias: Tensor | None, spec: StoredSpec) -> Tensor:
    """See `stored_linear`. Each output is one sum in the order of the inputs, whatever the number of rows."""
    storage = spec.storage
    assert isinstance(storage, Panels)
    if x.stride(1) != 1:
        x = x.contiguous()
    out = torch.empty(len(x), storage.outputs, dtype=x.dtype)
    rows = _Operands(x.data_ptr(), x.stride(0), len(x), out.data_ptr(), storage.outputs, native.NUMBERS[spec.dtype])
    _library.qcpu_linear(storage.matrix(weight), rows, None if bias is None else bias.data_ptr())
    return out
