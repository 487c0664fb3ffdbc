"""`PagePool`: which pages of one cache group are free, which are referenced, and by how many owners.

It knows nothing of tokens or hashes: whoever releases a page says whether its content is worth keeping. Owned by
`CacheGroup`; nobody else changes it.
"""

from collections import OrderedDict
from collections.abc import Iterable


class PagePool:
    """References of `pages` pages. Page 0 is never given out: it is where padding writes and nobody reads.

    A page is in exactly one place: referenced, `blank` (free, nothing worth keeping) or `cached` (free, but its content
    may be asked for again; oldest release first). Blank pages are given out before any cached one is lost.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.references = [0] * pages
        self.blank = list(range(pages - 1, 0, -1))
        self.cached: OrderedDict[int, None] = OrderedDict()

    @property
    def usable(self) -> int:
        """Pages that can ever be given out."""
        return self.pages - 1

    @property
    def available(self) -> int:
        """Pages that can be given out now."""
        return len(self.blank) + len(self.cached)

    def take(self) -> tuple[int, bool]:
        """A page with one reference, and whether cached content was lost for it. There must be one available."""
        lost = not self.blank
        page = self.cached.popitem(last=False)[0] if lost else self.blank.pop()
        self.references[page] = 1
        return page, lost

    def share(self, page: int) -> None:
        """One more owner for a page that is referenced or cached."""
        if not self.references[page]:
            del self.cached[page]
        self.references[page] += 1

    def release(self, page: int, keep: bool) -> None:
        """One owner fewer; with the last one the page is free, its content kept for later or not."""
        self.references[page] -= 1
        if self.references[page]:
            return
        if keep:
            self.cached[page] = None
        else:
            self.blank.append(page)

    def discard(self, page: int) -> None:
        """The content of this page is of no use to anyone new."""
        if page in self.cached:
            del self.cached[page]
            self.blank.append(page)

    def check(self, owners: Iterable[int]) -> None:
        """Assert conservation. `owners`: every page that some owner names, once per owner."""
        counted = [0] * self.pages
        for page in owners:
            counted[page] += 1
        assert counted == self.references, "references differ from the page tables that name the pages"
        assert self.references[0] == 0, "page 0 was given out"
        free = [*self.blank, *self.cached]
        assert len(set(free)) == len(free), "a page is free twice"
        assert not any(self.references[page] for page in free), "a free page is referenced"
        assert len(free) + sum(map(bool, self.references)) == self.usable, "a page is lost"
