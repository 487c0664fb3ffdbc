"""MXFP4 as gpt-oss ships it: stacks of experts in blocks of 32 values of 4 bits with a power of two each.

`NAME_blocks` uint8 (experts, outputs, inputs / 32, 16), the first value in the low half, and `NAME_scales` uint8
(experts, outputs, inputs / 32), where other checkpoints have `NAME`.
"""

from typing import Any

import torch

from quire.quantization.scaled import Block, Form
from quire.quantization.scheme import Matrix, Range, Scheme, Source, byte_range, expect, group_range, shape_of

METHODS = ("mxfp4", "gpt_oss_mxfp4")
MARKS = ("_blocks",)
FORM = Form("fp4_e2m1", 32, "e8m0")


class Mxfp4:
    """The format of one checkpoint."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.skipped = config.get("modules_to_not_convert") or []

    def scheme(self, matrix: Matrix, source: Source) -> Scheme | None:
        """See `Format`. The rows of `matrix` are those of all experts, one after another."""
        blocks, scales = f"{matrix.module}_blocks", f"{matrix.module}_scales"
        if blocks not in source.entries:
            return None
        experts = shape_of(source, blocks)[0]
        rows, groups = matrix.outputs // experts, matrix.inputs // 32
        expect(source, blocks, (experts, rows, groups, 16))
        expect(source, scales, (experts, rows, groups))

        def read(source: Source, wanted: Range, columns: Range) -> Block:
            # Whole experts are read, and the rows that are wanted of them kept.
            first, last = wanted[0] // rows, -(-wanted[1] // rows)
            mine = slice(wanted[0] - first * rows, wanted[1] - first * rows)
            codes = source.read(blocks, (first, last)).view(-1, groups * 16)[mine, slice(*byte_range(columns, 4))]
            found = source.read(scales, (first, last)).view(-1, groups)[mine, slice(*group_range(columns, 32))]
            return Block(codes, found.view(torch.uint8))

        return Scheme(FORM, (blocks, scales), read)

    def announced(self, matrix: Matrix) -> Form | None:
        """See `Format`. Only experts are quantized."""
        return FORM if ".experts" in matrix.module and not any(name in matrix.module for name in self.skipped) else None


def make(config: dict[str, Any]) -> Mxfp4:
    """The format of a checkpoint."""
    return Mxfp4(config)
