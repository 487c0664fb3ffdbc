"""Rows: the places of running sequences on every rank."""

from heapq import heappop, heappush

from quire.scheduler.sequence import Sequence


class Rows:
    """Row indices below `count`, the lowest free one first so that the rows in use stay together.

    Attributes:
        left: rows given back since the last plan; the next plan tells the ranks.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = list(range(count))
        self.left: list[int] = []

    def new_step(self) -> None:
        """Rows are held across steps."""

    def offer(self, seq: Sequence, tokens: int) -> int:
        """Everything, to a sequence that has a row or can get one."""
        return tokens if seq.row >= 0 or self.free else 0

    def take(self, seq: Sequence, tokens: int) -> None:
        """Give it a row if it has none."""
        if seq.row < 0:
            seq.row = heappop(self.free)

    def release(self, seq: Sequence) -> None:
        """The row is free again."""
        if seq.row >= 0:
            heappush(self.free, seq.row)
            self.left.append(seq.row)
            seq.row = -1

    def drain(self) -> list[int]:
        """Rows given back since this was last asked."""
        left, self.left = self.left, []
        return left
