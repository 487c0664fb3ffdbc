"""The form of weights with scales: codes of a small type, scales of groups of inputs, and what formats add to that.

All formats become this one form, so a kernel is written for it and never for a format. Everything lies in one tensor of
bytes: codes row by row, then scales, zero points, factors of rows and the groups of columns, each if the form has it.
Storage of `ops/stored.py`; `loading/` fills it from a checkpoint, or quantizes values into it while they stream in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from quire.quantization.elements import ELEMENTS, Element, pack, packed_bytes, unpack
from quire.quantization.online import quantize_int4, quantize_int8
from quire.quantization.storage import Sized

ALIGNMENT = 16
"""Bytes that each part begins at a multiple of."""
BLOCK_VALUES = 1 << 22
"""Values that are quantized at once."""

ScaleType = Literal["float32", "float16", "bfloat16", "float8_e4m3fn", "e8m0"]
SCALE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "e8m0": 1}
Factor = Literal["multiply", "divide"]


@dataclass(frozen=True, slots=True)
class Form:
    """What a value is: (code - zero) * (scale * factor) + shift, and for some formats times a number of its column.

    Attributes:
        element: of the codes, a name in ELEMENTS.
        group: inputs that share a scale; None is a whole row.
        scale: type of the scales.
        row_block: neighbouring rows that share scales.
        zeros: whether each group has a zero point (a code, uint8).
        shifted: whether each group has a shift (float32).
        factor: whether each row has a float32 number more, and whether scales are multiplied with it or divided by it.
        ordered: whether columns say themselves which group they belong to (GPTQ's act-order).
        columns: whether each column has a float32 number that its values are multiplied with (AWQ's smoothing).
    """

    element: str
    group: int | None
    scale: ScaleType = "float32"
    row_block: int = 1
    zeros: bool = False
    factor: Factor | None = None
    ordered: bool = False
    columns: bool = False
    shifted: bool = False

    @property
    def bits(self) -> int:
        """Of a code."""
        return ELEMENTS[self.element].bits


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of a weight in a form, as a format read them.

    Attributes:
        codes: (rows, bytes) uint8, packed as `elements.pack` does.
        scales: (rows / row_block, groups), of the form's scale type; e8m0 as uint8.
        zeros: (rows, groups) uint8.
        factors: (rows,) float32.
        order: (inputs,) int32, the group of each column, counted from the first group that is held.
        columns: (inputs,) float32.
        shifts: (rows, groups) float32.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    factors: Tensor | None = None
    order: Tensor | None = None
    columns: Tensor | None = None
    shifts: Tensor | None = None

    def rows(self, first: int, last: int) -> "Block":
        """Those from `first` to `last`, of a block whose rows share no scales."""

        return self.by_rows(lambda part: part[first:last])

    def by_rows(self, change: Callable[[Tensor], Tensor]) -> "Block":
        """With `change` made to every part that has rows."""
        parts = {name: getattr(self, name) for name in ("codes", "scales", "zeros", "factors", "shifts")}
        return replace(self, **{name: change(part) for name, part in parts.items() if part is not None})


@runtime_checkable
class TakesBlocks(Sized, Protocol):
    """A storage that takes rows as a format reads them."""

    def put_block(self, data: Tensor, first: int, block: Block) -> None:
        """Store the rows of `block` from row `first` on."""
        ...


@dataclass(frozen=True)
class Scaled:
    """A weight of `outputs` rows and `inputs` columns in `form`; a `Storage`.

    Attributes:
        groups: groups of inputs that are held.
        offset: columns of the first group that another rank holds.
        dtype: of the values that are taken and given.
    """

    outputs: int
    inputs: int
    form: Form
    groups: int
    offset: int
    dtype: str
    device: str

    @staticmethod
    def of(outputs: int, inputs: int, form: Form, dtype: str, device: str) -> "Scaled":
        """A weight whose groups begin with the first column."""
        groups = 1 if form.group is None else -(-inputs // form.group)
        return Scaled(outputs, inputs, form, groups, 0, dtype, device)

    def allocate(self) -> Tensor:
        """Bytes for the weight; rows that are never put in are zero: their scales are."""
        data = torch.zeros(self.nbytes, dtype=torch.uint8, device=self.device)
        if self.form.factor == "divide":
            self.part(data, "factors").fill_(1.0)
        return data

    @property
    def nbytes(self) -> int:
        """Bytes of the weight with all that belongs to it."""
        return self._extents[1]

    @property
    def width(self) -> int:
        """Codes of a row."""
        return self.inputs

    @property
    def element(self) -> Element:
        """Of the codes."""
        return ELEMENTS[self.form.element]

    @cached_property
    def _extents(self) -> tuple[dict[str, tuple[int, int]], int]:
        """First byte and bytes of each part, and the sum."""
        form = self.form
        sizes = {
            "codes": self.outputs * packed_bytes(self.width, form.bits),
            "scales": -(-self.outputs // form.row_block) * self.groups * SCALE_BYTES[form.scale],
            "zeros": self.outputs * self.groups if form.zeros else 0,
            "factors": self.outputs * 4 if form.factor else 0,
            "order": self.inputs * 4 if form.ordered else 0,
            "columns": self.inputs * 4 if form.columns else 0,
            "shifts": self.outputs * self.groups * 4 if form.shifted else 0,
        }
        found, position = {}, 0
        for name, size in sizes.items():
            found[name] = position, size
            position += -(-size // ALIGNMENT) * ALIGNMENT
        return found, position

    def part(self, data: Tensor, name: str) -> Tensor:
        """One part of `data` as a matrix or vector: codes, scales, zeros, factors, order, columns or shifts."""
        start, size = self._extents[0][name]
        raw = data[start : start + size]
        if name == "codes":
            return raw.view(self.outputs, -1)
        if name == "scales":
            kind = torch.uint8 if self.form.scale == "e8m0" else getattr(torch, self.form.scale)
            return raw.view(kind).view(-1, self.groups)
        if name == "zeros":
            return raw.view(self.outputs, self.groups)
        if name == "shifts":
            return raw.view(torch.float32).view(self.outputs, self.groups)
        return raw.view(torch.int32 if name == "order" else torch.float32)

    def put_block(self, data: Tensor, first: int, block: Block) -> None:
        """Store rows that are in this form, as the rows from `first` on, a multiple of the form's `row_block`."""
        self.part(data, "codes")[first : first + len(block.codes)] = block.codes
        self.put_scales(data, first, block)

    def put_scales(self, data: Tensor, first: int, block: Block) -> None:
        """Store all of a block but its codes."""
        rows, row = len(block.codes), first // self.form.row_block
        self.part(data, "scales")[row : row + len(block.scales), : block.scales.shape[1]] = block.scales
        for name, points in (("zeros", block.zeros), ("shifts", block.shifts)):
            if points is not None:
                self.part(data, name)[first : first + rows, : points.shape[1]] = points
        if block.factors is not None:
            self.part(data, "factors")[first : first + rows] = block.factors
        for name, values in (("order", block.order), ("columns", block.columns)):
            if values is not None:
                self.part(data, name).copy_(values)

    def put(self, data: Tensor, first: int, values: Tensor) -> None:
        """Quantize `values` (rows, inputs) into the rows from `first` on, row by row; see `quantize`."""
        step = max(1, BLOCK_VALUES // max(1, self.inputs))
        for begin in range(0, len(values), step):
            self.put_block(data, first + begin, self.quantize(values[begin : begin + step]))

    def quantize(self, values: Tensor) -> Block:
        """(rows, inputs) values as codes whose scales put the largest magnitude of each group at the type's largest.

        Scales of eight exponent bits are rounded up; a factor puts the largest scale of a row at its type's largest.
        Groups of 4-bit integers get the best of several scales.
        """
        form, rows = self.form, len(values)
        if form.scale == "float32" and form.element == "uint4b8" and form.group is not None:
            quantized, scales = quantize_int4(values, form.group)
            return Block(pack((quantized + 8).to(torch.uint8), form.bits), scales)
        if form.scale == "float32" and form.element == "int8" and form.group is None:
            quantized, scales = quantize_int8(values)
            return Block(quantized.view(torch.uint8), scales[:, None])
        group = form.group or self.inputs
        wide = torch.nn.functional.pad(values.float(), (0, self.groups * group - self.inputs)).view(rows, -1, group)
        wanted = wide.abs().amax(2) / self.element.largest
        factors = None
        if form.factor is not None:
            factors = wanted.amax(1) / ELEMENTS["fp8_e4m3"].largest
            factors = torch.where(factors > 0, factors, 1.0)
            wanted = wanted / factors[:, None]
        stored = _rounded(wanted, form.scale)
        used = scale_values(stored, form.scale) * (1.0 if factors is None else factors[:, None])
        codes = self.element.encode(wide / torch.where(used > 0, used, 1.0)[:, :, None])
        return Block(pack(codes.view(rows, -1)[:, : self.inputs].contiguous(), form.bits), stored, factors=factors)

    def rows(self, data: Tensor, ids: Tensor) -> Tensor:
        """Rows `ids` (n,) as (n, inputs) values, computed in float32."""
        form = self.form
        values = self.element.decode(self.codes_of(data, ids))
        scales = scale_values(self.scales_of(data, ids), form.scale)
        if form.zeros:
            values -= self._spread(data, self.part(data, "zeros")[ids].float())
        if form.factor is not None:
            scales = with_factors(scales, self.part(data, "factors")[ids], form)
        values *= self._spread(data, scales)
        if form.shifted:
            values += self._spread(data, self.part(data, "shifts")[ids])
        if form.columns:
            values *= self.part(data, "columns")
        return values.to(getattr(torch, self.dtype))

    def codes_of(self, data: Tensor, ids: Tensor) -> Tensor:
        """The codes of rows `ids`, (n, inputs) uint8."""
        return unpack(self.part(data, "codes")[ids], self.form.bits, self.inputs)

    def scales_of(self, data: Tensor, ids: Tensor) -> Tensor:
        """The scales of rows `ids`, as they are stored."""
        stored = self.part(data, "scales")
        # Not every device indexes values of 8 bits.
        raw = stored.view(torch.uint8) if stored.element_size() == 1 else stored
        return raw[ids // self.form.row_block].view(stored.dtype)

    def _spread(self, data: Tensor, grouped: Tensor) -> Tensor:
        """(n, groups) numbers as (n, inputs)."""
        if self.groups == 1:
            return grouped
        if self.form.ordered:
            return grouped[:, self.part(data, "order").long()]
        group = self.form.group or self.inputs
        return grouped.repeat_interleave(group, 1)[:, self.offset : self.offset + self.inputs]


def scale_values(stored: Tensor, kind: ScaleType) -> Tensor:
    """Scales as float32."""
    return ELEMENTS["e8m0"].decode(stored) if kind == "e8m0" else stored.float()


def with_factors(scales: Tensor, factors: Tensor, form: Form) -> Tensor:
    """Scales (rows, groups) with those of whole rows, (rows,)."""
    return scales / factors[:, None] if form.factor == "divide" else scales * factors[:, None]


def _rounded(scales: Tensor, kind: ScaleType) -> Tensor:
    if kind != "e8m0":
        return scales.to(getattr(torch, kind))
    exponents = torch.ceil(torch.log2(scales.clamp(min=2.0**-126)))
    return (exponents + 127).clamp(0, 254).to(torch.uint8)
