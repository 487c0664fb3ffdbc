"""AWQ, as AutoAWQ writes it for its GEMM kernels: 4 bits, zero points, groups of inputs.

`qweight` int32 (inputs, outputs / 8) and `qzeros` int32 (groups, outputs / 8), outputs within a word in the order
0, 2, 4, 6, 1, 3, 5, 7; `scales` (groups, outputs).
"""

from typing import Any

import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.quantization.layouts import repacked, scale_type
from quire.quantization.scaled import Block, Form
from quire.quantization.scheme import (
    HEADS,
    Matrix,
    Range,
    Scheme,
    Source,
    expect,
    group_of,
    group_range,
    present,
    shape_of,
)

METHODS = ("awq", "awq_marlin")
MARKS = (".qweight",)
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output that each half byte of a word belongs to, from the lowest on."""
HALF = 8


class Awq:
    """The format of one checkpoint. Raises CheckpointError for layouts of other kernels."""

    def __init__(self, config: dict[str, Any]) -> None:
        version = str(config.get("version") or "gemm").lower()
        if version != "gemm":
            raise CheckpointError(f"config.json: version {version!r} of AWQ is not supported; supported: gemm")
        self.group = config.get("group_size") or config.get("q_group_size")
        self.skipped = config.get("modules_to_not_convert") or []

    def scheme(self, matrix: Matrix, source: Source) -> Scheme | None:
        """See `Format`."""
        codes, scales, zeros = (f"{matrix.module}.{name}" for name in ("qweight", "scales", "qzeros"))
        if codes not in source.entries:
            return None
        expect(source, codes, (matrix.inputs, matrix.outputs // 8))
        groups = shape_of(source, scales)[0]
        expect(source, scales, (groups, matrix.outputs))
        group = None if groups == 1 else group_of(matrix.inputs, groups, scales)
        points = present(source, matrix, "qzeros")
        if points and bool((_spread(source.read(zeros)) == HALF).all()):
            points = ()
        form = Form("uint4" if points else "uint4b8", group, scale_type(source, scales), zeros=bool(points))

        def read(source: Source, rows: Range, columns: Range) -> Block:
            words = rows[0] // 8, -(-rows[1] // 8)
            mine = slice(rows[0] % 8, rows[0] % 8 + rows[1] - rows[0])
            held = (0, 1) if group is None else group_range(columns, group)
            found = _spread(source.read(codes, columns, words))[:, mine].T
            return Block(
                repacked(found, 4),
                source.read(scales, held, rows).T,
                _spread(source.read(zeros, held, words))[:, mine].T if points else None,
            )

        unused = present(source, matrix, "qzeros") if not points else ()
        unused += tuple(name for name in present(source, matrix, "bias") if not bool(source.read(name).any()))
        return Scheme(form, (codes, scales, *points), read, unused, whole=True)

    def announced(self, matrix: Matrix) -> Form | None:
        """See `Format`."""
        name = matrix.module
        if name.endswith(HEADS) or any(part in name for part in self.skipped):
            return None
        return Form("uint4b8", self.group if isinstance(self.group, int) and self.group > 0 else None)


def _spread(words: Tensor) -> Tensor:
    """(rows, words) int32 as (rows, outputs) uint8."""
    out = torch.empty(*words.shape, 8, dtype=torch.uint8, device=words.device)
    for i, column in enumerate(ORDER):
        out[:, :, column] = (words >> (4 * i) & 15).to(torch.uint8)
    return out.flatten(1)


def make(config: dict[str, Any]) -> Awq:
    """The format of a checkpoint."""
    return Awq(config)
