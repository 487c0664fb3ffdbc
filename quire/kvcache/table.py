"""`PageTable`: the pages of one sequence in one cache group, by position.

It only remembers; references are the pool's. Owned by the sequence, changed by the `pages` resource.
"""

from quire.kvcache.retention import first_page, sink_pages
from quire.messages.state import Retention


class PageTable:
    """Page numbers in token order; 0 where the retention rule needs no page any more.

    Attributes:
        pages: entry i stands for tokens [i * page_size, (i + 1) * page_size).
        kept_from: entries before this one are 0, sinks aside.
    """

    __slots__ = ("kept_from", "page_size", "pages", "rule")

    def __init__(self, rule: Retention, page_size: int) -> None:
        self.rule = rule
        self.page_size = page_size
        self.pages: list[int] = []
        self.kept_from = 0

    @property
    def room(self) -> int:
        """Tokens that have a page."""
        return len(self.pages) * self.page_size

    def held(self) -> list[int]:
        """The pages that are really held, last first: leaves of the prefix tree are released before their parents."""
        return [page for page in reversed(self.pages) if page]

    def first_kept(self, computed: int) -> int:
        """The first page, sinks aside, that `trim` leaves."""
        return first_page(self.rule, computed, self.page_size)

    def trim(self, computed: int) -> list[int]:
        """Let go of pages that no token from `computed` on needs; returns them, last first."""
        keep = self.first_kept(computed)
        start = max(self.kept_from, sink_pages(self.rule, self.rule.sink, self.page_size))
        if keep <= start:
            return []
        keep = min(keep, len(self.pages))
        gone = [page for page in reversed(self.pages[start:keep]) if page]
        self.pages[start:keep] = [0] * (keep - start)
        self.kept_from = keep
        return gone

    def clear(self) -> list[int]:
        """Forget everything; returns what was held, last first."""
        held = self.held()
        self.pages = []
        self.kept_from = 0
        return held
