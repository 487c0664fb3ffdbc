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

    def lend(self, row: int, values: Tensor) -> None:
        """Give `row` a slot that holds `values`, (width,)."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._slots[row] = slot
        self._slot_of_row[row] = slot
        self._table[slot] = sent(values.to(self._table.dtype), self._table.device)

    def give_back(self, row: int) -> None:
        """Take the slot of `row` back, if it has one."""
        slot = self._slots.pop(row, None)
        if slot is not None:
            self._slot_of_row[row] = 0
            self._free.append(slot)

    @property
    def slots(self) -> Slots:
        """All slots as they are now, for kernels; the table is another one once it has grown."""
        return Slots(self._table, self._slot_of_row)

    def add(self, rows: Tensor, columns: Tensor) -> None:
        """Add 1 at (row, column) for each pair. Rows (n,) int64 must all have slots; columns (n,) int64."""
        # Flat: accumulating over two indices would sort them first.
        flat = self._slot_of_row[rows] * self._table.shape[1] + columns
        self._table.view(-1).index_add_(0, flat, torch.ones_like(flat, dtype=self._table.dtype))

    def _grow(self) -> None:
        have = len(self._table)
        size = min(self._max_slots, max(4, 2 * have))
        table = torch.zeros(size, self._table.shape[1], dtype=self._table.dtype, device=self._table.device)
        table[:have] = self._table
        self._table = table
        self._free = list(range(size - 1, have - 1, -1))
