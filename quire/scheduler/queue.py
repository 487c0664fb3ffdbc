"""`Queue`: sequences kept in order of their rank, for the waiting and for the running."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from quire.scheduler.sequence import Sequence

Rank = Callable[[Sequence], tuple[int, ...]]


class Queue:
    """A list of sequences, sorted by a rank that does not change while a sequence is in it."""

    def __init__(self, rank: Rank) -> None:
        self.items: list[Sequence] = []
        self._rank = rank

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.items)

    def add(self, seq: Sequence) -> None:
        """Put `seq` where it belongs."""
        insort(self.items, seq, key=self._rank)

    def remove(self, seq: Sequence) -> None:
        """Take `seq` out; it must be in."""
        at = bisect_left(self.items, self._rank(seq), key=self._rank)
        assert self.items[at] is seq, "a rank has changed"
        del self.items[at]
