"""Dense per-row tables that only some rows need: a slot of vocabulary width, given on demand with all its values.

Owned by the sampler's row state. Slot 0 stays zero and stands for every row that has none, so a gather over any batch
is right for all of it.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quire.ops.edit import Slots
from quire.sampling.sent import sent

CODES = {torch.int32: "i", torch.float32: "f"}
"""Type codes of what a table may hold."""


@dataclass(frozen=True, slots=True)
class Content:
    """What the slot of a row holds, as the few numbers in which it differs from a slot of one value.

    Attributes:
        row: whose slot it is.
        fill: the value wherever nothing else is said.
        tokens: of type code q, where `values` stand; each once.
        values: of the table's type code, one per token.
        counted: of type code q: each adds 1 at its token, as often as it comes.
    """

    row: int
    fill: float
    tokens: "array[int]"
    values: "array[int] | array[float]"
    counted: "array[int]" = field(default_factory=lambda: array("q"))


class SlotTable:
    """A table (slots, width) whose slots are lent to rows.

    Args:
        max_rows: rows are below it.
        width: entries of a slot.
        dtype: of the entries, int32 or float32.
        device: where the table lies.
    """

    def __init__(self, max_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._max_slots = max_rows + 1
        self._code = CODES[dtype]
        self._table = torch.zeros(1, width, dtype=dtype, device=device)
        self._slot_of_row = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._slots: dict[int, int] = {}
        self._free: list[int] = []

    def stay(self) -> None:
        """Take memory for all rows at once: from now on the table stays where it is, so that it can be recorded."""
        self._grow(self._max_slots)

    def lend(self, contents: Sequence[Content]) -> None:
        """Give rows that have no slot one each, in a few operations for all of them; each row comes once.

        Raises:
            IndexError: a token lies outside the slot; nothing is lent then.
        """
        if not contents:
            return
        count = len(contents)
        self._reserve(count)
        lent = self._free[-count:]
        at = self._flat(lent * 2, [c.tokens for c in contents] + [c.counted for c in contents])
        del self._free[-count:]
        rows = [content.row for content in contents]
        self._slots.update(zip(rows, lent, strict=True))
        numbers = array(self._code, [content.fill for content in contents])
        for content in contents:
            numbers.extend(content.values)
        places = sent(torch.cat([torch.tensor(rows + lent), at]), self._table.device)
        values = sent(torch.frombuffer(numbers, dtype=self._table.dtype), self._table.device)
        self._write(places, values, count)

    def give_back(self, rows: Iterable[int]) -> None:
        """Take the slots of `rows` back, of those that have one."""
        lent = {row: self._slots.pop(row) for row in rows if row in self._slots}
        if lent:
            self._free += lent.values()
            self._slot_of_row.index_fill_(0, sent(torch.tensor(list(lent)), self._table.device), 0)

    @property
    def slots(self) -> Slots:
        """All slots as they are now, for kernels; the table is another one once it has grown."""
        return Slots(self._table, self._slot_of_row)

    def add(self, rows: Tensor, columns: Tensor) -> None:
        """Add 1 at (row, column) for each pair whose row has a slot. rows, columns: (n,) int64."""
        slots = self._slot_of_row[rows]
        # Flat: accumulating over two indices would sort them first.
        flat = slots * self._width + columns
        self._table.view(-1).index_add_(0, flat, (slots > 0).to(self._table.dtype))

    @property
    def _width(self) -> int:
        return self._table.shape[1]

    def _flat(self, slots: list[int], parts: "Sequence[array[int]]") -> Tensor:
        """Where the tokens of `parts`, each of a slot, lie in the flat table: (n,) int64 on the host."""
        tokens = array("q")
        for part in parts:
            tokens.extend(part)
        if not tokens:
            return torch.empty(0, dtype=torch.int64)
        columns = torch.frombuffer(tokens, dtype=torch.int64)
        least, most = map(int, columns.aminmax())
        if least < 0 or most >= self._width:
            raise IndexError(f"tokens {least} to {most} do not lie in a vocabulary of {self._width}")
        slot = torch.tensor(slots).repeat_interleave(torch.tensor([len(part) for part in parts]))
        return slot.mul_(self._width).add_(columns)

    def _write(self, places: Tensor, values: Tensor, count: int) -> None:
        """Write `count` slots. All of it lies on the device already, and nothing waits for it.

        Args:
            places: int64: the rows, their slots, then flat places, first one for each value and then those to count at.
            values: what fills each slot, then what is written.
        """
        rows, slots, at = places[:count], places[count : 2 * count], places[2 * count :]
        fills, values = values[:count], values[count:]
        flat = self._table.view(-1)
        self._table.index_copy_(0, slots, fills.unsqueeze(1).expand(-1, self._width))
        flat.index_copy_(0, at[: len(values)], values)
        counted = at[len(values) :]
        if len(counted):
            flat.index_add_(0, counted, flat.new_ones(1).expand(len(counted)))
        self._slot_of_row.index_copy_(0, rows, slots)

    def _reserve(self, count: int) -> None:
        """Have `count` free slots: the table doubles until it has."""
        size = len(self._table)
        while len(self._free) + size - len(self._table) < count:
            assert size < self._max_slots, "a row was lent a second slot"
            size = min(self._max_slots, max(4, 2 * size))
        if size > len(self._table):
            self._grow(size)

    def _grow(self, size: int) -> None:
        have = len(self._table)
        table = torch.zeros(size, self._width, dtype=self._table.dtype, device=self._table.device)
        table[:have] = self._table
        self._table = table
        self._free += range(size - 1, have - 1, -1)
