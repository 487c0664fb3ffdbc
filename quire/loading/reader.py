"""Reads slices of checkpoint tensors into tensors, on any device, converting the dtype on the way.

Reads with pread and never maps a file: one that shrinks meanwhile is an error here, not a SIGBUS. A slice over rows is
one run of bytes; a slice over columns is read row by row, so no rank reads what another one holds.
"""

import os
from types import TracebackType

import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.headers import TensorEntry
from quire.loading.recipe import Span

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCK_BYTES = 32 << 20


class Reader:
    """Open files of one checkpoint; a context manager."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def read_into(self, target: Tensor, entry: TensorEntry, spans: list[Span]) -> int:
        """Fill `target` with the `spans` of tensor `entry`, and with zeros where they pad. Returns the bytes read.

        `target` has the spans' lengths (padding included) as its shape. Raises CheckpointError naming file and tensor
        where the data is not floating-point or ends early.
        """
        if entry.dtype not in FLOATS:
            raise CheckpointError(
                f"{entry.file}: tensor {entry.name} is {entry.dtype}; weights must be one of {', '.join(FLOATS)} "
                "(quantized checkpoints are not supported)"
            )
        for dim, span in enumerate(spans):
            if span.zeros:
                target.narrow(dim, span.length, span.zeros).zero_()
                target = target.narrow(dim, 0, span.length)
        rows = spans[0]
        row_items = _items(entry.shape[1:])
        taken = spans[1:] and spans[1].length < entry.shape[1]
        row_bytes = _items(target.shape[1:]) * FLOATS[entry.dtype].itemsize
        step = max(1, BLOCK_BYTES // max(1, row_bytes))
        for begin in range(0, rows.length, step):
            count = min(step, rows.length - begin)
            block = torch.empty((count, *target.shape[1:]), dtype=FLOATS[entry.dtype])
            first = (rows.start + begin) * row_items
            if taken:
                self._read_columns(block, entry, first, spans[1])
            else:
                self._read(_bytes(block), entry, first * block.itemsize)
            target[begin : begin + count].copy_(block)
        return rows.length * row_bytes

    def _read_columns(self, block: Tensor, entry: TensorEntry, first: int, columns: Span) -> None:
        inner = _items(entry.shape[2:])
        raw = _bytes(block)
        width = len(raw) // block.shape[0]
        stride = entry.shape[1] * inner * block.itemsize
        offset = (first + columns.start * inner) * block.itemsize
        for row in range(block.shape[0]):
            self._read(raw[row * width : (row + 1) * width], entry, offset + row * stride)

    def _read(self, buffer: memoryview, entry: TensorEntry, offset: int) -> None:
        """Fill `buffer` from byte `offset` of the tensor's data."""
        if entry.file not in self._files:
            self._files[entry.file] = os.open(entry.file, os.O_RDONLY)
        done = 0
        while done < len(buffer):
            got = os.preadv(self._files[entry.file], [buffer[done:]], entry.offset + offset + done)
            if got == 0:
                raise CheckpointError(f"{entry.file} ended while tensor {entry.name} was read; download it again")
            done += got


def _items(shape: tuple[int, ...] | torch.Size) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _bytes(block: Tensor) -> memoryview:
    return block.flatten().view(torch.uint8).numpy().data
