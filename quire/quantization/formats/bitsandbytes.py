"""bitsandbytes: nf4 and fp4 in blocks, their scales quantized once more or not, and int8 with a scale a row.

4 bits: `weight` (bytes, 1), row by row, the first value in the high half, of any type that the bytes were put in
(`bnb_4bit_quant_storage`); `weight.absmax` of each block, and
with nesting `weight.nested_absmax`, `weight.nested_quant_map` and an offset in `weight.quant_state...`, JSON in bytes.
8 bits: `weight` int8 beside `SCB`, the largest magnitude of each row.
"""

import json
from typing import Any

import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.quantization.elements import ELEMENTS
from quire.quantization.scaled import Block, Form
from quire.quantization.scheme import HEADS, Matrix, Range, Scheme, Source, byte_range, expect, group_range, shape_of

METHODS = ("bitsandbytes", "bnb")
MARKS = (".SCB", ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
TYPES = {"nf4": "nf4", "fp4": "bnb_fp4"}


class BitsAndBytes:
    """The format of one checkpoint."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.skipped = config.get("llm_int8_skip_modules") or HEADS
        self.eight = bool(config.get("load_in_8bit") or config.get("_load_in_8bit"))

    def scheme(self, matrix: Matrix, source: Source) -> Scheme | None:
        """See `Format`."""
        weight = f"{matrix.module}.weight"
        for kind, element in TYPES.items():
            state = f"{weight}.quant_state.bitsandbytes__{kind}"
            if state in source.entries:
                return _four_bits(matrix, source, state, element)
        scales = f"{matrix.module}.SCB"
        if scales not in source.entries:
            return None
        expect(source, weight, (matrix.outputs, matrix.inputs))
        expect(source, scales, (matrix.outputs,))

        def read(source: Source, rows: Range, columns: Range) -> Block:
            codes = source.read(weight, rows, columns).view(torch.uint8)
            return Block(codes, source.read(scales, rows).float()[:, None] / 127)

        extra = f"{matrix.module}.weight_format"
        return Scheme(Form("int8", None), (weight, scales), read, (extra,) if extra in source.entries else ())

    def announced(self, matrix: Matrix) -> Form | None:
        """See `Format`."""
        if any(name in matrix.module for name in self.skipped):
            return None
        return Form("int8", None) if self.eight else Form("nf4", 64)


def _four_bits(matrix: Matrix, source: Source, state: str, element: str) -> Scheme:
    weight = f"{matrix.module}.weight"
    told = json.loads(bytes(source.read(state).cpu().tolist()))
    size = int(told["blocksize"])
    if matrix.inputs % size:
        raise CheckpointError(f"tensor {weight}: blocks of {size} values do not divide rows of {matrix.inputs}")
    count = max(1, shape_of(source, weight)[0])
    item = max(1, source.entries[weight].nbytes // count)
    expect(source, weight, (matrix.outputs * matrix.inputs // 2 // item, 1))
    table = source.read(f"{weight}.quant_map").float()
    if not torch.equal(table, torch.tensor(ELEMENTS[element].values, device=table.device)):
        raise CheckpointError(f"tensor {weight}.quant_map is not the table of {element}")
    groups, half = matrix.inputs // size, matrix.inputs // 2
    nested = told.get("nested_blocksize")
    names = [weight, state, *(f"{weight}.{name}" for name in ("absmax", "quant_map"))]
    if nested:
        names += [f"{weight}.nested_absmax", f"{weight}.nested_quant_map"]

    def scales(source: Source, rows: Range) -> Tensor:
        first, last = rows[0] * groups, rows[1] * groups
        found = source.read(f"{weight}.absmax", (first, last))
        if nested:
            blocks = torch.arange(first, last, device=found.device) // int(nested)
            values = source.read(f"{weight}.nested_quant_map")[found.long()]
            found = values * source.read(f"{weight}.nested_absmax")[blocks] + float(told["nested_offset"])
        return found.float().view(-1, groups)

    def read(source: Source, rows: Range, columns: Range) -> Block:
        found = source.read(weight, (rows[0] * half // item, rows[1] * half // item)).view(torch.uint8)
        pairs = found.view(-1, half)[:, slice(*byte_range(columns, 4))]
        return Block(pairs >> 4 | pairs << 4, scales(source, rows)[:, slice(*group_range(columns, size))])

    return Scheme(Form(element, size), tuple(names), read)


def make(config: dict[str, Any]) -> BitsAndBytes:
    """The format of a checkpoint."""
    return BitsAndBytes(config)
