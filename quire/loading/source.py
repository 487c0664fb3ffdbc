"""Tensors of a checkpoint as their files have them, in ranges of rows and columns; what quantization formats read by.

May be read on any thread. Made before the model is built, since how a matrix is held decides how it will be stored.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.headers import TensorEntry
from quire.loading.reader import Files
from quire.quantization.scheme import Range

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


class FileSource:
    """A `Source` over files.

    Args:
        entries: of all tensors.
        device: where tensors are wanted.
    """

    def __init__(self, entries: Mapping[str, TensorEntry], device: torch.device) -> None:
        self.entries = entries
        self._device = device
        self._files = Files()

    def close(self) -> None:
        """See `Source`."""
        self._files.close()

    def read(self, name: str, rows: Range | None = None, columns: Range | None = None) -> Tensor:
        """See `Source`. Raises CheckpointError where the file ends early or the type is none of torch's."""
        entry = self.entries[name]
        if entry.dtype not in TYPES:
            raise CheckpointError(f"{entry.file}: tensor {name} is {entry.dtype}, which cannot be read")
        shape = list(entry.shape)
        row_bytes = entry.nbytes // max(1, shape[0]) if shape else entry.nbytes
        first, last = rows or (0, shape[0] if shape else 1)
        offset = entry.offset + first * row_bytes
        if shape:
            shape[0] = last - first
        if columns is None or columns == (0, shape[1]):
            raw = torch.empty((last - first) * row_bytes, dtype=torch.uint8)
            self._files.fill(raw.numpy().data, entry, offset)
        else:
            item = row_bytes // max(1, shape[1])
            shape[1] = columns[1] - columns[0]
            raw = torch.empty(last - first, shape[1] * item, dtype=torch.uint8)
            for row in range(last - first):
                self._files.fill(raw[row].numpy().data, entry, offset + row * row_bytes + columns[0] * item)
        return raw.to(self._device).view(-1).view(TYPES[entry.dtype]).view(shape)

    def read_bytes(self, name: str, rows: Range) -> Tensor:
        """See `Source`."""
        entry = self.entries[name]
        row_bytes = entry.nbytes // max(1, entry.shape[0])
        raw = torch.empty(rows[1] - rows[0], row_bytes, dtype=torch.uint8)
        self._files.fill(raw.view(-1).numpy().data, entry, entry.offset + rows[0] * row_bytes)
        return raw.to(self._device)
