"""torchao, as it flattens tensors into safetensors: fp8 and int8 with scales of rows, blocks or groups, and int4.

`_weight_qdata` (outputs, inputs) beside `_weight_scale` and, of integers, `_weight_zero_point`. What the file's own
metadata adds (activations, kernels) is not needed. int4 in its unpacked form is int8 that uses few of its values;
Int4Tensor packs two codes in a byte, the even input in the low half, beside scales and zero points of (groups,
outputs): a value is code * scale + point. `_weight_act_pre_scale` (inputs,), of AWQ, is what activations are multiplied
with.
"""

from typing import Any

import torch

from quire.base.errors import CheckpointError
from quire.checkpoint.headers import TensorEntry
from quire.quantization.layouts import CODE_TYPES, eight_bits, scale_type, smoothed, with_zeros
from quire.quantization.scaled import Block, Form
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

METHODS = ("torchao",)
MARKS = ("._weight_qdata",)
CODES, SCALE, ZEROS = "_weight_qdata", "_weight_scale", "_weight_zero_point"
SMOOTHING = "_weight_act_pre_scale"


class TorchAo:
    """The format of one checkpoint."""

    def scheme(self, matrix: Matrix, source: Source) -> Scheme | None:
        """See `Format`. Raises CheckpointError for codes that are packed for one kernel."""
        codes = source.entries.get(f"{matrix.module}.{CODES}")
        if codes is None:
            return None
        return smoothed(_scheme(codes, matrix, source), matrix, source, SMOOTHING)

    def announced(self, matrix: Matrix) -> Form | None:
        """See `Format`: the metadata lists no modules."""
        return None


def _scheme(codes: TensorEntry, matrix: Matrix, source: Source) -> Scheme:
    if codes.dtype in ("I8", "U8") and codes.shape == (matrix.outputs, matrix.inputs // 2):
        return _pairs(matrix, source)
    if codes.dtype not in CODE_TYPES or codes.shape != (matrix.outputs, matrix.inputs):
        raise CheckpointError(
            f"tensor {codes.name} is {codes.dtype} of shape {codes.shape}; of torchao's tensors Float8Tensor, "
            "Int8Tensor, IntxUnpackedToInt8Tensor and Int4Tensor are supported, whose codes are of 8 bits, or two "
            f"in a byte, for {matrix.outputs} x {matrix.inputs} values. Quantize again with one of their "
            "configurations"
        )
    zeros = present(source, matrix, ZEROS)
    if zeros and bool(source.read(zeros[0]).any()):
        return with_zeros(eight_bits(matrix, source, SCALE, codes=CODES), zeros[0])
    return eight_bits(matrix, source, SCALE, zeros, codes=CODES)


def _pairs(matrix: Matrix, source: Source) -> Scheme:
    """Int4Tensor's codes, scales and points."""
    codes, scales, points = (f"{matrix.module}.{name}" for name in (CODES, SCALE, ZEROS))
    groups = shape_of(source, scales)[0]
    group = group_of(matrix.inputs, groups, scales)
    for name in (scales, points):
        expect(source, name, (groups, matrix.outputs))

    def read(source: Source, rows: Range, columns: Range) -> Block:
        held = group_range(columns, group)
        found = source.read(codes, rows, byte_range(columns, 4)).view(torch.uint8)
        shifts = source.read(points, held, rows).T.float()
        return Block(found, source.read(scales, held, rows).T, shifts=shifts)

    return Scheme(Form("int4", group, scale_type(source, scales), shifted=True), (codes, scales, points), read)


def make(config: dict[str, Any]) -> TorchAo:
    """The format of a checkpoint."""
    return TorchAo()
