"""Reads checkpoint tensors in slices, from several threads at once.

Reads with pread and never maps a file: one that shrinks meanwhile is an error here, not a SIGBUS. A slice over rows is
one run of bytes; a slice over columns is read row by row, so no rank reads what another one holds. `staging.py` says
where the bytes go.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from types import TracebackType

import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.headers import TensorEntry
from quire.loading.recipe import Span

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCK_BYTES = 16 << 20
"""Bytes of the largest slice, unless a single row is larger."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of a checkpoint tensor on their way.

    Attributes:
        target: (rows, ...) where the values go, of any dtype and device; rows count from `first` of the tensor.
        entry: the tensor.
        first: row of the tensor that becomes row 0 of `target`.
        start: column of the tensor that becomes column 0 of `target`; all of a row where the columns are as many.
        keep: takes the values where they are stored in a way of their own; `target` is then on the meta device and only
            says which they are.
        change: makes of the values those that are kept.
    """

    target: Tensor
    entry: TensorEntry
    first: int
    start: int = 0
    keep: Callable[[Tensor], None] | None = None
    change: Callable[[Tensor], Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the data in the file."""
        return FLOATS[self.entry.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        return self.target.numel() * self.dtype.itemsize

    @property
    def offset(self) -> int:
        """First byte in the file."""
        inner = _items(self.entry.shape[2:])
        width = self.entry.shape[1] if len(self.entry.shape) > 1 else 1
        return self.entry.offset + (self.first * width + self.start) * inner * self.dtype.itemsize

    @property
    def runs(self) -> int:
        """Runs of bytes that the slice consists of: one, or one a row."""
        cut = len(self.entry.shape) > 1 and self.target.shape[1] < self.entry.shape[1]
        return self.target.shape[0] if cut else 1


def slices(target: Tensor, entry: TensorEntry, spans: list[Span], unit: int = 1) -> list[Slice]:
    """What must be read to fill `target` with the `spans` of tensor `entry`. Where they pad it is zeroed now.

    `target` has the spans' lengths (padding included) as its shape; a slice has whole units of so many rows. Raises
    CheckpointError naming file and tensor where the data is not floating-point.
    """
    if entry.dtype not in FLOATS:
        raise CheckpointError(
            f"{entry.file}: tensor {entry.name} is {entry.dtype}; weights must be one of {', '.join(FLOATS)} "
            "(no format of quantized weights explains it)"
        )
    for dim, span in enumerate(spans):
        if span.zeros:
            target.narrow(dim, span.length, span.zeros).zero_()
            target = target.narrow(dim, 0, span.length)
    row_bytes = _items(target.shape[1:]) * FLOATS[entry.dtype].itemsize
    step = max(1, BLOCK_BYTES // max(1, row_bytes * unit)) * unit
    start = spans[1].start if len(spans) > 1 else 0
    return [
        Slice(target[begin : begin + step], entry, spans[0].start + begin, start)
        for begin in range(0, spans[0].length, step)
    ]


class Files:
    """Open files of one checkpoint; a context manager. May be read from several threads."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._lock = Lock()

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; reading opens them again."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read(self, piece: Slice, buffer: Tensor) -> None:
        """Fill `buffer`, contiguous host memory of `piece.nbytes` bytes, with the bytes of `piece`.

        Raises CheckpointError naming file and tensor where the data ends early.
        """
        raw = buffer.view(-1).view(torch.uint8).numpy().data
        width = len(raw) // piece.runs
        stride = piece.entry.nbytes // piece.entry.shape[0]
        for run in range(piece.runs):
            self.fill(raw[run * width : (run + 1) * width], piece.entry, piece.offset + run * stride)

    def fill(self, raw: memoryview, entry: TensorEntry, offset: int) -> None:
        """Fill `raw` with what the file of `entry` has from `offset` on. Raises as `read` does."""
        descriptor, done = self._open(entry.file), 0
        while done < len(raw):
            got = os.preadv(descriptor, [raw[done:]], offset + done)
            if got == 0:
                raise CheckpointError(f"{entry.file} ended while tensor {entry.name} was read; download it again")
            done += got

    def _open(self, file: str) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(file, os.O_RDONLY)
            return self._descriptors[file]


def _items(shape: tuple[int, ...] | torch.Size) -> int:
    count = 1
    for n in shape:
        count *= n
    return count
