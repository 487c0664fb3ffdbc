"""GPTQ, as AutoGPTQ and GPTQModel write it: 2, 3, 4 and 8 bits, with or without order by activation, both versions.

`qweight` int32 (inputs * bits / 32, outputs), `scales` (groups, outputs), `qzeros` int32 (groups, outputs * bits / 32),
which the first version stores less 1, and `g_idx`, the group of each input.
"""

import re
from typing import Any

import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.quantization.elements import packed_bytes, unpack
from quire.quantization.layouts import needed_order, scale_type
from quire.quantization.scaled import Block, Form
from quire.quantization.scheme import (
    HEADS,
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

METHODS = ("gptq", "gptq_marlin", "gptqmodel")
MARKS = (".g_idx",)
BITS = (2, 3, 4, 8)
FIRST, SECOND = "gptq", "gptq_v2"


class Gptq:
    """The format of one checkpoint. Raises CheckpointError where codes are in the order of a kernel."""

    def __init__(self, config: dict[str, Any]) -> None:
        version = str(config.get("checkpoint_format") or FIRST)
        if version not in (FIRST, SECOND) or config.get("is_marlin_format"):
            raise CheckpointError(
                f"config.json: checkpoint_format {version!r} is not supported; supported: {FIRST}, {SECOND}"
            )
        self.less = 1 if version == FIRST else 0
        self.bits, self.group = config.get("bits"), config.get("group_size")
        self.skipped = [rule[2:] for rule in config.get("dynamic") or {} if rule.startswith("-:")]

    def scheme(self, matrix: Matrix, source: Source) -> Scheme | None:
        """See `Format`."""
        codes, scales, zeros, order = (f"{matrix.module}.{name}" for name in ("qweight", "scales", "qzeros", "g_idx"))
        if codes not in source.entries:
            return None
        bits = shape_of(source, codes)[0] * 32 // max(1, matrix.inputs)
        if bits not in BITS:
            raise CheckpointError(f"tensor {codes} has {bits} bits a value; supported: {', '.join(map(str, BITS))}")
        expect(source, codes, (matrix.inputs * bits // 32, matrix.outputs))
        groups = shape_of(source, scales)[0]
        expect(source, scales, (groups, matrix.outputs))
        group = None if groups == 1 else group_of(matrix.inputs, groups, scales)
        half, points = 1 << (bits - 1), None
        if zeros in source.entries and not bool((self._points(source, zeros, bits, matrix.outputs) == half).all()):
            points = zeros
        by = needed_order(source, order, group)
        form = Form(
            f"uint{bits}" if points else f"uint{bits}b{half}",
            group,
            scale_type(source, scales),
            zeros=points is not None,
            ordered=by is not None,
        )

        def read(source: Source, rows: Range, columns: Range) -> Block:
            held = (0, groups) if group is None or by else group_range(columns, group)
            return Block(
                _along_inputs(source, codes, bits, rows, columns),
                source.read(scales, held, rows).T,
                None
                if points is None
                else self._points(source, points, bits, matrix.outputs)[slice(*rows), slice(*held)],
                order=None if by is None else source.read(by)[slice(*columns)].int(),
            )

        names = [codes, scales, *(name for name in (points, by) if name)]
        unused = [name for name in (zeros, order) if name in source.entries and name not in names]
        # Old releases write biases of zeros for matrices that have none.
        unused += [name for name in present(source, matrix, "bias") if not bool(source.read(name).any())]
        return Scheme(form, tuple(names), read, tuple(unused), whole=True, groups=groups)

    def _points(self, source: Source, name: str, bits: int, outputs: int) -> Tensor:
        """Zero points, (outputs, groups)."""
        words = source.read(name)
        # Less 1, a point of 0 has become the largest.
        return unpack(words.view(torch.uint8), bits, outputs).T + self.less & (1 << bits) - 1

    def announced(self, matrix: Matrix) -> Form | None:
        """See `Format`."""
        name = matrix.module
        if name.endswith(HEADS) or any(re.match(rule, name) for rule in self.skipped):
            return None
        if self.bits not in BITS:
            return None
        group = self.group if isinstance(self.group, int) and self.group > 0 else None
        return Form(f"uint{self.bits}b{1 << (self.bits - 1)}", group)


def _along_inputs(source: Source, name: str, bits: int, rows: Range, columns: Range) -> Tensor:
    """Codes that are packed down the columns, as packed rows."""
    first, last = byte_range(columns, bits)
    words = source.read(name, (first // 4, -(-last // 4)), rows)
    inner = words.T.contiguous().view(torch.uint8)
    skipped = first % 4
    return inner[:, skipped : skipped + packed_bytes(columns[1] - columns[0], bits)]


def make(config: dict[str, Any]) -> Gptq:
    """The format of a checkpoint."""
    return Gptq(config)
