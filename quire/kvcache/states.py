"""`StateGroup`: pages of recurrent state, each of which holds one state, and which of them are worth finding again.

A sequence updates its state in the page that its next token falls into; at the end of that page the state stays there,
and the next step writes the one after it to another page. So the state at the last full page is always at hand, by no
copy. Of the pages before it only checkpoints stay findable: a state costs as much as thousands of tokens of attention.
"""

from collections.abc import Collection, Sequence

from quire.kvcache.group import ENDLESS, CacheGroup
from quire.kvcache.table import PageTable


class StateTable(PageTable):
    """The pages of one sequence by position: the one it works in and the full one before it; 0 everywhere else."""

    __slots__ = ()

    def first_kept(self, computed: int) -> int:
        """The last full page: where it ends, the sequence can be gone on with, by itself or by others."""
        return computed // self.page_size - 1


class StateGroup(CacheGroup):
    """Pages of all layers that keep the same kind of recurrent state.

    A page is true to its key if a step has ended where the page ends; the resource `checkpoints` sees to that.
    """

    recurrent = True

    def new_table(self) -> StateTable:
        """An empty table for one sequence."""
        return StateTable(self.rule, self.page_size)

    def reach(self, table: PageTable, shared: Sequence[int]) -> int:
        """How long the sequence can become: one page more takes it anywhere."""
        return ENDLESS if self._free(shared) > 0 else table.room + len(shared) * self.page_size

    def extend(self, table: PageTable, end: int) -> list[int]:
        """Give the table a page for the state after `end` tokens, and none for positions that are passed over."""
        missing = -(-(end - table.room) // self.page_size)
        pages = [0] * (missing - 1) + self.take(1) if missing > 0 else []
        table.pages += pages
        return pages

    def trim(self, table: PageTable, computed: int, checkpoints: Collection[int] = (), interval: int = 1) -> None:
        """Let go of states before the last full page; those at `checkpoints`, or at a multiple of `interval`, stay
        findable, and so do those that others have begun with.
        """
        start = table.kept_from
        ends = {page: (i + 1) * self.page_size for i, page in enumerate(table.pages[start:], start) if page}
        gone = table.trim(computed)
        plain = [page for page in gone if ends[page] not in checkpoints and ends[page] % interval]
        self.withdraw(page for page in plain if self.pool.references[page] == 1)
        self.release(gone)
