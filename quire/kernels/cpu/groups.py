"""Weights whose groups of inputs have scales, packed for the compiled kernels: codes of 4, 6 or 8 bits.

Values stay those of the format to the bit. ggml's blocks of 256 values keep their scales as a few bits beside a unit;
other scales are kept as float16 or float32. Zero points become shifts, which are exact. Layouts: native/linear.h.
"""

import ctypes
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from quire.kernels.cpu.linear import Matrix, Panels
from quire.ops.stored import arrange, unfold
from quire.platforms import native
from quire.quantization.blocks import SPLITS, BlockForm, Blocks, Split
from quire.quantization.elements import ELEMENTS, unpack
from quire.quantization.scaled import Block, Form, Scaled, scale_values, with_factors

FORMATS = ((16, 3), (64, 4), (256, 5))
"""For each format of native/linear.h how many codes it has."""
FLOATS, HALVES, STEPS = range(3)
DTYPES = {FLOATS: torch.float32, HALVES: torch.float16, STEPS: torch.int8}
GROUPS = (16, 32, 64, 128, 256)
STEP_VALUES = 1 << 20
"""Values that are taken apart at once."""
WHOLE = 256
"""Inputs of a group where whole rows share a scale, which is repeated."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a `Matrix` says of groups."""

    format: int
    group: int
    scales: int
    shifted: bool
    zero: int


class _Groups(ctypes.Structure):
    """`Groups` of native/linear.h."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("codes", "scales", "shifts", "units", "shift_units"))


_put = native.load()[0].qcpu_put_groups
_put.restype = None
_put.argtypes = [ctypes.POINTER(Matrix), ctypes.c_long, ctypes.c_long, ctypes.POINTER(_Groups)]


@dataclass(frozen=True, slots=True)
class Grouped(Panels):
    """Rows in `form`, which has a layout. See `Storage`."""

    outputs: int
    inputs: int
    form: Form | BlockForm
    dtype: str

    def matrix(self, data: Tensor | None) -> Matrix:
        """See `Panels`."""
        own = layout(self.form)
        assert own is not None
        address = None if data is None else data.data_ptr()
        return Matrix(address, self.outputs, self.inputs, own.format, own.group, own.scales, own.shifted, own.zero)

    def part(self, count: int) -> "Grouped":
        """See `Panels`."""
        return replace(self, outputs=self.outputs // count)

    def put(self, data: Tensor, first: int, values: Tensor) -> None:
        """See `Storage`; ggml's blocks are read from files only."""
        assert isinstance(self.form, Form)
        plain = Scaled.of(len(values), self.inputs, self.form, self.dtype, "cpu")
        self.put_block(data, first, plain.quantize(values))

    def put_block(self, data: Tensor, first: int, block: Block) -> None:
        """See `TakesBlocks`."""
        own, step = layout(self.form), max(1, STEP_VALUES // self.inputs)
        assert own is not None
        for row in range(0, len(block.codes), step):
            self._put_rows(data, first + row, block.rows(row, row + step), own)

    def _put_rows(self, data: Tensor, first: int, block: Block, own: Layout) -> None:
        groups, blocks = -(-self.inputs // own.group), -(-self.inputs // WHOLE)
        if isinstance(self.form, BlockForm):
            parts = SPLITS[self.form.kind][1](block.codes.reshape(-1, self.form.each))
            codes, numbers = parts.codes.view(len(block.codes), -1), _of_blocks(parts, own)
        else:
            codes, numbers = unpack(block.codes, self.form.bits, self.inputs), _of_groups(block, self.form, groups)
            if self.form.element.startswith("int"):
                # Two's complement, raised by the least value that there is.
                codes = codes ^ own.zero
        kinds = DTYPES[own.scales], DTYPES[own.scales], torch.float16, torch.float16
        cut = (groups, groups, blocks, blocks)
        rows = [
            None if part is None else part.reshape(len(codes), -1)[:, :count].to(kind).contiguous()
            for part, count, kind in zip(numbers, cut, kinds, strict=True)
        ]
        given = [codes[:, : self.inputs].contiguous(), *rows]
        _put(
            self.matrix(data),
            first,
            len(codes),
            _Groups(*(None if part is None else part.data_ptr() for part in given)),
        )


Numbers = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Scales, shifts, units of both."""


def _of_blocks(parts: Split, own: Layout) -> Numbers:
    if parts.steps is None:
        return parts.unit, parts.shift_unit, None, None
    return parts.steps, parts.shift_steps, parts.unit, parts.shift_unit


def _of_groups(block: Block, form: Form, groups: int) -> Numbers:
    scales = scale_values(block.scales, form.scale)
    if block.factors is not None:
        scales = with_factors(scales, block.factors, form)
    shifts = block.shifts if block.zeros is None else -block.zeros.float() * scales
    if form.group is None:
        scales, shifts = scales.expand(-1, groups), None if shifts is None else shifts.expand(-1, groups)
    return scales, shifts, None, None


@cache
def layout(form: Form | BlockForm) -> Layout | None:
    """How weights in a form are packed; None for forms that are left to others."""
    if isinstance(form, BlockForm):
        if form.kind not in SPLITS:
            return None
        plain = SPLITS[form.kind][0]
        return _with(plain, STEPS if form.per > 32 else HALVES, plain.shifted)
    if form.ordered or form.columns or form.row_block > 1:
        return None
    shifted = form.zeros or form.shifted
    # Only of scales of few bits is a zero point the same as a shift.
    if form.zeros and (form.scale == "float32" or form.factor is not None):
        return None
    exact = form.scale == "float16" and not shifted and form.factor is None
    return _with(form, HALVES if exact else FLOATS, shifted)


def _with(form: Form, scales: int, shifted: bool) -> Layout | None:
    values, group = ELEMENTS[form.element].values, form.group or WHOLE
    if group not in GROUPS or not form.element.startswith(("int", "uint")):
        return None
    zero = max(0, -round(min(values)))
    kind = next((number for count, number in FORMATS if max(values) + zero < count), None)
    # With a scale a row integers of 8 bits have a packing of their own.
    if kind is None or (kind == FORMATS[-1][1] and form.group is None and not shifted):
        return None
    return Layout(kind, group, scales, shifted, zero)


def _grouped(weight: Scaled | Blocks) -> Grouped | None:
    if weight.device != "cpu" or weight.dtype not in native.NUMBERS or weight.offset or layout(weight.form) is None:
        return None
    return Grouped(weight.outputs, weight.inputs, weight.form, weight.dtype)


arrange("cpu")(_grouped)
unfold("cpu")(_grouped)
