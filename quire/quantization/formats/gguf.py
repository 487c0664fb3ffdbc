"""GGUF's types: q4_0, q5_0 and q8_0 become groups of 32 with a scale; of the others CPUs keep codes of 4 or 6 bits and
ggml's own scales, and GPUs, of all but q2_k, codes with float32 scales, of 6 or 10 bits a weight.

Queries and keys of files that hold them in neighbouring pairs are put in the order of other checkpoints. Matrices that
others hold as (inputs, outputs) are never read as such, whatever their type.
"""

from typing import Any

import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.gguf import BLOCKS, FLOATS
from quire.quantization.blocks import BlockForm
from quire.quantization.elements import pack
from quire.quantization.scaled import Block, Form
from quire.quantization.scheme import Matrix, Range, Scheme, Source, expect, group_range

METHODS = ("gguf",)
MARKS = ()
SIMPLE = {
    "Q4_0": Form("uint4b8", 32, "float16"),
    "Q5_0": Form("uint5b16", 32, "float16"),
    "Q8_0": Form("int8", 32, "float16"),
}
PREFIX = "GGML_"
"""What headers put before the names of ggml's types."""


class Gguf:
    """The format of one file."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.permuted: dict[str, int] = config.get("permuted") or {}
        self.turned: list[str] = config.get("turned") or []

    def scheme(self, matrix: Matrix, source: Source) -> Scheme | None:
        """See `Format`."""
        name = f"{matrix.module}.weight"
        entry = source.entries.get(name)
        last = matrix.module.rsplit(".", 1)[-1]
        heads = self.permuted.get(last)
        if entry is None or (heads is None and last not in self.turned and not entry.dtype.startswith(PREFIX)):
            return None
        expect(source, name, (matrix.outputs, matrix.inputs))
        kind = entry.dtype.removeprefix(PREFIX)
        per, each = sizes(kind)

        def raw(source: Source, rows: Range, columns: Range) -> Tensor:
            first, last = group_range(columns, per)
            found = source.read_bytes(name, rows)[:, first * each : last * each]
            return found if heads is None else _paired(found, matrix.outputs // heads)

        unit = 1 if heads is None else matrix.outputs // heads
        if kind not in SIMPLE:
            block = BlockForm(kind, per, each)
            return Scheme(block, (name,), lambda *at: Block(found := raw(*at), found[:, :0]), unit=unit)
        form = SIMPLE[kind]

        def read(source: Source, rows: Range, columns: Range) -> Block:
            found = raw(source, rows, columns)
            blocks = found.reshape(-1, each)
            scales = blocks[:, :2].contiguous().view(torch.float16).view(len(found), -1)
            cut = columns[0] % per
            codes = _codes(kind, blocks).reshape(len(found), -1)[:, cut : cut + columns[1] - columns[0]]
            return Block(pack(codes.contiguous(), form.bits), scales)

        return Scheme(form, (name,), read, unit=unit)

    def announced(self, matrix: Matrix) -> Form | None:
        """See `Format`. Files say the type of every tensor."""
        return None


def sizes(kind: str) -> tuple[int, int]:
    """Values and bytes of a block."""
    for name, per, each in BLOCKS.values():
        if name == kind:
            return per, each
    if kind not in FLOATS.values():
        raise CheckpointError(f"ggml's type {kind} is not supported")
    return 1, 4 if kind == "F32" else 2


def _codes(kind: str, blocks: Tensor) -> Tensor:
    """(blocks, bytes) as (blocks, 32) codes."""
    if kind == "Q8_0":
        return blocks[:, 2:]
    inner = blocks[:, 2:] if kind == "Q4_0" else blocks[:, 6:]
    codes = torch.cat((inner & 15, inner >> 4), 1)
    if kind == "Q5_0":
        shifts = torch.arange(8, device=blocks.device)
        codes = codes | ((blocks[:, 2:6, None] >> shifts & 1) << 4).flatten(1).to(torch.uint8)
    return codes


def _paired(rows: Tensor, size: int) -> Tensor:
    """Rows of whole heads of `size`: the first of all pairs before the second of all."""
    return rows.view(-1, size // 2, 2, rows.shape[1]).transpose(1, 2).reshape(len(rows), -1)


def make(config: dict[str, Any]) -> Gguf:
    """The format of a checkpoint."""
    return Gguf(config)
