"""Layouts that several formats share: 8-bit values with scales of any shape, and packed codes with scales of groups.

A format file names its tensors; how these become blocks of a form is here, once for each way of lying.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.quantization.elements import pack, packed_bytes
from quire.quantization.scaled import Block, Factor, Form, ScaleType
from quire.quantization.scheme import (
    Matrix,
    Range,
    Scheme,
    Source,
    byte_range,
    expect,
    group_of,
    group_range,
    present,
    shape_of,
)

SCALE_TYPES: dict[str, ScaleType] = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "e8m0", "U8": "e8m0",
}  # fmt: skip
CODE_TYPES = {"F8_E4M3": "fp8_e4m3", "F8_E5M2": "fp8_e5m2", "I8": "int8"}


def eight_bits(
    matrix: Matrix,
    source: Source,
    scale: str,
    unused: tuple[str, ...] = (),
    block: tuple[int, int] | None = None,
    codes: str = "weight",
) -> Scheme:
    """Codes of 8 bits with scales of any shape: one, one a row, one a block, one a group of a row.

    `scale` is the ending of the scales' name, which values are multiplied with, `codes` that of the codes. `block` is
    what the metadata says of rows and inputs that share a scale; it counts where it fits the tensors.
    """
    weight, scales = f"{matrix.module}.{codes}", f"{matrix.module}.{scale}"
    expect(source, weight, (matrix.outputs, matrix.inputs))
    shape = shape_of(source, scales)
    # ModelOpt keeps the blocks' own two dimensions, of length 1.
    shape = (shape[0], shape[2]) if len(shape) == 4 else shape
    rows, groups = (*shape, 1, 1)[:2]
    said = block or (None, None)
    row_block, group = _block(matrix.outputs, rows, said[0]), _block(matrix.inputs, groups, said[1])
    single = rows == 1 and matrix.outputs > 1
    form = Form(
        CODE_TYPES[source.entries[weight].dtype],
        None if groups == 1 else group,
        scale_type(source, scales),
        1 if single else row_block,
    )

    def read(source: Source, cut: Range, columns: Range) -> Block:
        values = source.read(scales).reshape(rows, groups)
        values = values.view(torch.uint8) if form.scale == "e8m0" else values
        if single:
            values = values.expand(cut[1] - cut[0], -1)
        else:
            values = values[cut[0] // row_block : -(-cut[1] // row_block)]
        if form.group is not None:
            first, last = group_range(columns, form.group)
            values = values[:, first:last]
        return Block(source.read(weight, cut, columns).view(torch.uint8), values)

    return Scheme(form, (weight, scales), read, unused)


def with_zeros(scheme: Scheme, name: str) -> Scheme:
    """Signed 8-bit codes with signed zero points, (rows, groups) or one, in tensor `name`: all as unsigned numbers."""
    form, inner = scheme.form, scheme.read
    assert isinstance(form, Form)

    def read(source: Source, rows: Range, columns: Range) -> Block:
        block, zeros = inner(source, rows, columns), source.read(name)
        zeros = zeros.reshape(-1, shape_of(source, name)[-1] if zeros.dim() > 1 else 1)
        zeros = zeros.expand(rows[1] - rows[0], -1) if len(zeros) == 1 else zeros[slice(*rows)]
        held = (0, 1) if form.group is None else group_range(columns, form.group)
        raised = (zeros[:, slice(*held)].int() + 128).to(torch.uint8)
        return Block(block.codes ^ 128, block.scales, raised)

    made = Form("uint8", form.group, form.scale, form.row_block, zeros=True)
    return Scheme(made, (*scheme.names, name), read, scheme.unused)


@dataclass(frozen=True, slots=True)
class Packed:
    """Endings of the tensors of a matrix whose codes lie packed along its inputs.

    Attributes:
        element: of the codes.
        codes: bytes or words, (outputs, inputs * bits / 8 or / 32), the first code in the lowest bits.
        scales: (outputs, groups), (outputs, 1) or (outputs,).
        factor: one number for the matrix, and what is done with it.
        zeros: gives the zero points of a range of rows and of groups, (rows, groups) uint8.
        order: the group of each input.
        unused: tensors that are there and not needed.
    """

    element: str
    codes: str
    scales: str = "weight_scale"
    factor: tuple[str, Factor] | None = None
    zeros: Callable[[Source, Range, Range], Tensor] | None = None
    order: str | None = None
    unused: tuple[str, ...] = ()


def packed(matrix: Matrix, source: Source, how: Packed) -> Scheme:
    """The scheme of a packed matrix. Raises CheckpointError naming a tensor that does not fit."""
    codes, scales = f"{matrix.module}.{how.codes}", f"{matrix.module}.{how.scales}"
    plain = Form(how.element, None)
    words = source.entries[codes].dtype == "I32"
    length = packed_bytes(matrix.inputs, plain.bits)
    expect(source, codes, (matrix.outputs, -(-length // 4) if words else length))
    shape = shape_of(source, scales)
    if not shape or shape[0] != matrix.outputs:
        raise CheckpointError(f"tensor {scales} has shape {shape}, its matrix has {matrix.outputs} rows")
    groups = shape[1] if len(shape) > 1 else 1
    group = None if groups == 1 else group_of(matrix.inputs, groups, scales)
    kind = scale_type(source, scales)
    order = None if how.order is None else needed_order(source, f"{matrix.module}.{how.order}", group)
    form = Form(
        how.element, group, kind, zeros=how.zeros is not None, factor=how.factor and how.factor[1], ordered=bool(order)
    )

    def read(source: Source, rows: Range, columns: Range) -> Block:
        first, last = byte_range(columns, form.bits)
        if words:
            found = source.read(codes, rows).view(torch.uint8)[:, first:last]
        else:
            found = source.read(codes, rows, (first, last)).view(torch.uint8)
        held = (0, groups) if group is None or order else group_range(columns, group)
        values = source.read(scales, rows).view(len(found), -1)[:, slice(*held)]
        return Block(
            found,
            values.view(torch.uint8) if kind == "e8m0" else values,
            None if how.zeros is None else how.zeros(source, rows, held),
            None if how.factor is None else _whole(source, f"{matrix.module}.{how.factor[0]}", len(found)),
            None if order is None else source.read(order, columns).int(),
        )

    names = [codes, scales]
    if how.factor is not None:
        names.append(f"{matrix.module}.{how.factor[0]}")
    if order is not None:
        names.append(order)
    extra = how.unused if how.order is None or order else (*how.unused, how.order)
    return Scheme(form, tuple(names), read, present(source, matrix, *extra), groups=groups)


def smoothed(scheme: Scheme, matrix: Matrix, source: Source, ending: str = "pre_quant_scale") -> Scheme:
    """The scheme with a number for each input that activations are multiplied with, if the checkpoint has one."""
    names, inner = present(source, matrix, ending), scheme.read
    if not names or not isinstance(scheme.form, Form):
        return scheme

    def read(source: Source, rows: Range, columns: Range) -> Block:
        return replace(inner(source, rows, columns), columns=source.read(names[0], columns).float())

    return replace(scheme, form=replace(scheme.form, columns=True), names=scheme.names + names, read=read)


def needed_order(source: Source, name: str, group: int | None) -> str | None:
    """`name`, the group of each input, unless it says nothing else than that neighbours share one."""
    if name not in source.entries or group is None:
        return None
    given = source.read(name)
    plain = torch.arange(len(given), device=given.device) // group
    return None if bool((given == plain).all()) or bool((given < 0).all()) else name


def scale_type(source: Source, name: str) -> ScaleType:
    """The type of scales. Raises CheckpointError naming the tensor if it is none."""
    dtype = source.entries[name].dtype
    if dtype not in SCALE_TYPES:
        raise CheckpointError(f"tensor {name} is {dtype}; scales must be one of {', '.join(SCALE_TYPES)}")
    return SCALE_TYPES[dtype]


def repacked(codes: Tensor, bits: int) -> Tensor:
    """(rows, n) codes in bytes, packed a few rows at a time."""
    step = max(1, (1 << 22) // max(1, codes.shape[1]))
    return torch.cat([pack(codes[i : i + step], bits) for i in range(0, len(codes), step)])


def _whole(source: Source, name: str, rows: int) -> Tensor:
    return source.read(name).float().reshape(-1)[:1].expand(rows)


def _block(size: int, blocks: int, said: int | None) -> int:
    """Length of `blocks` blocks of which the last may be shorter: as said, a power of two, or what divides exactly."""
    powers = [1 << n for n in range(size.bit_length() + 1)]
    for length in ([] if said is None else [said]) + powers[::-1]:
        if -(-size // length) == blocks:
            return length
    return size // blocks
