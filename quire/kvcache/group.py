"""`CacheGroup`: pool and prefix index of one cache group, kept in step with each other.

A page's content is worth keeping after its last owner has left exactly when the index knows it. Owned by the `pages`
resource of the scheduler.
"""

from collections.abc import Collection, Iterable, Sequence

from quire.kvcache.hits import GroupHits
from quire.kvcache.pool import PagePool
from quire.kvcache.prefix import PrefixIndex
from quire.kvcache.retention import most_held, needed_pages
from quire.kvcache.table import PageTable
from quire.messages.state import GroupLayout

ENDLESS = 1 << 62
"""Tokens of a sequence whose length nothing bounds."""


class CacheGroup:
    """Pages of all layers that keep the same kind of state.

    Attributes:
        recurrent: whether a page holds one state in place of those of its tokens.
    """

    recurrent = False

    def __init__(self, layout: GroupLayout) -> None:
        self.rule = layout.spec.retention
        self.page_size = layout.page_size
        self.pool = PagePool(layout.pages)
        self.index = PrefixIndex()

    def new_table(self) -> PageTable:
        """An empty table for one sequence."""
        return PageTable(self.rule, self.page_size)

    def most_held(self, tokens: int) -> int:
        """Pages that a sequence of `tokens` tokens holds at most while it advances token by token."""
        return most_held(self.rule, tokens, self.page_size)

    def reach(self, table: PageTable, shared: Sequence[int]) -> int:
        """How long the sequence of this table can become, if it also gets the `shared` pages of its hit."""
        return table.room + (len(shared) + self._free(shared)) * self.page_size

    def extend(self, table: PageTable, end: int) -> list[int]:
        """Give the table pages for `end` tokens; returns what is new."""
        pages = self.take(max(0, -(-(end - table.room) // self.page_size)))
        table.pages += pages
        return pages

    def trim(self, table: PageTable, computed: int, checkpoints: Collection[int] = (), interval: int = 1) -> None:
        """Let go of what no token from `computed` on needs. Checkpoints are for recurrent state."""
        self.release(table.trim(computed))

    def take(self, count: int) -> list[int]:
        """`count` pages for one owner; forgets the oldest cached content where there is nothing blank."""
        pages = []
        for _ in range(count):
            page, lost = self.pool.take()
            if lost:
                self.index.forget(page)
            pages.append(page)
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """One more owner for each page; zeros are skipped."""
        for page in pages:
            if page:
                self.pool.share(page)

    def release(self, pages: Iterable[int]) -> None:
        """One owner fewer for each page, in the order given: the first is the first to be lost later."""
        for page in pages:
            self.pool.release(page, keep=page in self.index)

    def withdraw(self, pages: Iterable[int]) -> None:
        """These pages must not be found by anyone new."""
        for page in pages:
            self.index.forget(page)
            self.pool.discard(page)

    def reset(self) -> None:
        """Forget every cached page that nobody references."""
        self.withdraw(list(self.pool.cached))

    def hits(self, hashes: list[bytes]) -> GroupHits:
        """Which pages of a prompt are cached; full attention needs them from the start and stops at the first gap."""
        known = self.index.pages
        if not self.keeps_all:
            return GroupHits(self.rule, self.page_size, [key in known for key in hashes])
        cached = []
        for key in hashes:
            if key not in known:
                break
            cached.append(True)
        return GroupHits(self.rule, self.page_size, cached)

    def pages_of_hit(self, hashes: list[bytes], tokens: int) -> list[int]:
        """The cached pages that a prefix of `tokens` tokens needs, by position; 0 where none is needed."""
        pages = [0] * (tokens // self.page_size)
        for i in needed_pages(self.rule, tokens, self.page_size):
            pages[i] = self.index.pages[hashes[i]]
        return pages

    @property
    def keeps_all(self) -> bool:
        """Whether every token is kept, so that what tables have in common stays in common."""
        return self.rule.window is None and self.rule.chunk is None

    def _free(self, shared: Sequence[int]) -> int:
        """Pages that can be given out beside those `shared` ones that nobody holds yet."""
        return self.pool.available - sum(not self.pool.references[page] for page in shared if page)

    def check(self, tables: Iterable[PageTable]) -> None:
        """Assert that pool, index and the tables of all sequences agree."""
        self.pool.check(page for table in tables for page in table.pages if page)
        assert {page: key for key, page in self.index.pages.items()} == self.index.hashes, "index is not one to one"
        assert not any(page in self.index for page in self.pool.blank), "a blank page can be found"
        assert all(page in self.index for page in self.pool.cached), "a cached page cannot be found"
