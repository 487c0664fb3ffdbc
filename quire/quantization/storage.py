"""What every way of storing a weight can do: memory for it, rows put in, rows read again.

Forms of this folder and kernels' own packings are storages; `ops/stored.py` says who offers which.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor


class Storage(Protocol):
    """How a weight of `outputs` rows and `inputs` columns is stored. A value: equal ones store alike."""

    @property
    def outputs(self) -> int:
        """Its rows."""
        ...

    @property
    def inputs(self) -> int:
        """Its columns."""
        ...

    @property
    def dtype(self) -> str:
        """Of the values that are put in and read."""
        ...

    def allocate(self) -> Tensor:
        """Memory for it; rows that are never put in are zero."""
        ...

    def put(self, data: Tensor, first: int, values: Tensor) -> None:
        """Store `values` (n, inputs) as the rows from `first` on. Threads may put different rows at once."""
        ...

    def rows(self, data: Tensor, ids: Tensor) -> Tensor:
        """Rows `ids` (n,) as (n, inputs) values."""
        ...


@runtime_checkable
class Sized(Storage, Protocol):
    """A storage that knows its size."""

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        ...
