"""A fused matrix whose parts are stored each in its own way: another form, order of columns, or full precision.

Parts lie one after another in one tensor of bytes. Parts that are alike are stored as one instead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.quantization.scaled import ALIGNMENT
from quire.quantization.storage import Sized


@dataclass(frozen=True, slots=True)
class Plain:
    """Rows in their dtype."""

    outputs: int
    inputs: int
    dtype: str
    device: str

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.outputs * self.inputs * self._type.itemsize

    def allocate(self) -> Tensor:
        """Zeros."""
        return torch.zeros(self.nbytes, dtype=torch.uint8, device=self.device)

    def put(self, data: Tensor, first: int, values: Tensor) -> None:
        """See `Storage`."""
        self.matrix(data)[first : first + len(values)] = values

    def rows(self, data: Tensor, ids: Tensor) -> Tensor:
        """See `Storage`."""
        return self.matrix(data)[ids]

    def matrix(self, data: Tensor) -> Tensor:
        """All rows, (outputs, inputs); `data` itself."""
        return data[: self.nbytes].view(self._type).view(self.outputs, self.inputs)

    @property
    def _type(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found


@dataclass(frozen=True, slots=True)
class Stacked:
    """`members`, whose rows follow each other; a `Storage`."""

    members: tuple[Sized, ...]

    @property
    def outputs(self) -> int:
        """Rows of all."""
        return sum(member.outputs for member in self.members)

    @property
    def inputs(self) -> int:
        """Columns of each."""
        return self.members[0].inputs

    @property
    def dtype(self) -> str:
        """Of the values."""
        return self.members[0].dtype

    def allocate(self) -> Tensor:
        """Memory of all members, as each allocates it."""
        filled = [torch.nn.functional.pad(one.allocate(), (0, -one.nbytes % ALIGNMENT)) for one in self.members]
        return torch.cat(filled)

    def starts(self) -> list[int]:
        """The first byte of every member."""
        found, start = [], 0
        for member in self.members:
            found.append(start)
            start += -(-member.nbytes // ALIGNMENT) * ALIGNMENT
        return found

    def each(self, data: Tensor) -> list[tuple[int, Sized, Tensor]]:
        """`(first row, member, its bytes)` of every member."""
        found, row = [], 0
        for member, start in zip(self.members, self.starts(), strict=True):
            found.append((row, member, data[start : start + member.nbytes]))
            row += member.outputs
        return found

    def put(self, data: Tensor, first: int, values: Tensor) -> None:
        """See `Storage`; rows may belong to several members."""
        for row, member, share in self.each(data):
            begin, end = max(first, row), min(first + len(values), row + member.outputs)
            if begin < end:
                member.put(share, begin - row, values[begin - first : end - first])

    def rows(self, data: Tensor, ids: Tensor) -> Tensor:
        """See `Storage`. Every member is asked for all rows, since the host does not know whose they are."""
        out = torch.zeros(len(ids), self.inputs, dtype=getattr(torch, self.dtype), device=data.device)
        for row, member, share in self.each(data):
            own = (ids >= row) & (ids < row + member.outputs)
            found = member.rows(share, (ids - row).clamp(0, member.outputs - 1))
            out = torch.where(own[:, None], found, out)
        return out
