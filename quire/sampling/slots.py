"""Dense per-row tables that only some rows need: a slot of vocabulary width, given on demand with all its values.

Owned by the sampler's row state. Slot 0 stays zero and stands for every row that has none, so a gather over any batch
is right for all of it.
"""

import torch
from torch import Tensor

from quire.ops.edit import Slots
from quire.sampling.sent import sent


class SlotTable:
    """A table (slots, width) whose slots are lent to rows.

    Args:
        max_rows: rows are below it.
        width: entries of a slot.
        dtype: of the entries.
        device: where the table lies.
    """

    def __init__(self, max_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._max_slots = max_rows + 1
        self._table = torch.zeros(1, width, dtype=dtype, device=device)
        self._slot_of_row = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._slots: dict[int, int] = {}
        self._free: list[int] = []

    def stay(self) -> None:
        """Take memory for all rows at once: from now on the table stays where it is, so that it can be recorded."""
        self._grow(self._max_slots)

    def lend(self, row: int, values: Tensor) -> None:
        """Give `row` a slot that holds `values`, (width,)."""
        if not self._free:
            self._grow(min(self._max_slots, max(4, 2 * len(self._table))))
        slot = self._free.pop()
        self._slots[row] = slot
        # Filled: to assign a number is to copy it, which waits for the device.
        self._slot_of_row[row].fill_(slot)
        self._table[slot] = sent(values.to(self._table.dtype), self._table.device)

    def give_back(self, row: int) -> None:
        """Take the slot of `row` back, if it has one."""
        slot = self._slots.pop(row, None)
        if slot is not None:
            self._slot_of_row[row].zero_()
            self._free.append(slot)

    @property
    def slots(self) -> Slots:
        """All slots as they are now, for kernels; the table is another one once it has grown."""
        return Slots(self._table, self._slot_of_row)

    def add(self, rows: Tensor, columns: Tensor) -> None:
        """Add 1 at (row, column) for each pair whose row has a slot. rows, columns: (n,) int64."""
        slots = self._slot_of_row[rows]
        # Flat: accumulating over two indices would sort them first.
        flat = slots * self._table.shape[1] + columns
        self._table.view(-1).index_add_(0, flat, (slots > 0).to(self._table.dtype))

    def _grow(self, size: int) -> None:
        have = len(self._table)
        table = torch.zeros(size, self._table.shape[1], dtype=self._table.dtype, device=self._table.device)
        table[:have] = self._table
        self._table = table
        self._free += range(size - 1, have - 1, -1)
