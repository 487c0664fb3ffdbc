"""A rank's columns of rows that are quantized while they load: scales are those of whole rows, as one rank has them.

Called by the loader where ranks cut columns and a scale, or a factor, belongs to a whole row.
"""

from dataclasses import replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from quire.quantization.elements import pack, unpack
from quire.quantization.online import quantize_int8
from quire.quantization.scaled import Scaled
from quire.quantization.scheme import Range, group_range
from quire.quantization.storage import Storage


@runtime_checkable
class Integers(Storage, Protocol):
    """A packing of integers with a scale a row (8 bits) or a group (4); None packs values."""

    @property
    def bits(self) -> int | None:
        """Of a weight."""
        ...

    def put_quantized(self, data: Tensor, first: int, values: Tensor, scales: Tensor) -> None:
        """`put` for values that are quantized already, in the form that `Canonical` describes; not of all bits."""
        ...


def needs_rows(storage: Storage, start: int) -> bool:
    """Whether values put into `storage` count for scales of their whole row, of which it holds columns from `start` on.

    A rank that begins within a group has scales of its own.
    """
    if isinstance(storage, Scaled):
        form = storage.form
        return form.group is None or (form.factor is not None and start % form.group == 0)
    return isinstance(storage, Integers) and storage.bits == 8


def put_share(storage: Storage, data: Tensor, first: int, values: Tensor, columns: Range) -> None:
    """Quantize whole rows `values` and store `columns` of them, which begin with a group, from row `first` on."""
    mine = slice(*columns)
    if isinstance(storage, Integers):
        codes, scales = quantize_int8(values)
        storage.put_quantized(data, first, codes[:, mine].contiguous(), scales)
        return
    assert isinstance(storage, Scaled)
    form = storage.form
    whole = Scaled.of(len(values), values.shape[1], form, storage.dtype, storage.device)
    block = whole.quantize(values)
    codes = unpack(block.codes, form.bits, values.shape[1])[:, mine].contiguous()
    groups = slice(0, 1) if form.group is None else slice(*group_range(columns, form.group))
    storage.put_block(data, first, replace(block, codes=pack(codes, form.bits), scales=block.scales[:, groups]))
