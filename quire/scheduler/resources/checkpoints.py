"""Checkpoints: where steps end so that recurrent state can be kept, for others and for the sequence itself.

A page of recurrent state holds what the last step left in it. So a step that leaves a page must have read a state at
the page's beginning, and the ends of prompts and what others share are ends of steps. Holds nothing: pages are the
resource of that name.
"""

from bisect import bisect_right
from collections.abc import Sequence as Several

from quire.scheduler.sequence import Sequence


class Checkpoints:
    """Cuts what is granted to a sequence that lags behind by more than one token.

    Args:
        page_sizes: tokens per page of the groups with recurrent state.
        step: checkpoints lie at multiples of so many tokens.
        interval: one is kept every so many tokens.
    """

    def __init__(self, page_sizes: Several[int], step: int, interval: int) -> None:
        self._page_sizes, self._step, self._interval = page_sizes, step, interval

    def new_step(self) -> None:
        """Nothing is counted by steps."""

    def offer(self, seq: Sequence, tokens: int) -> int:
        """As many tokens as end on the next checkpoint at most, and rather at the end of a page than beyond it."""
        start = seq.computed
        if tokens <= 1 or not seq.checkpoints:
            return tokens
        after = bisect_right(seq.checkpoints, start)
        ends = [start + tokens, (start // self._interval + 1) * self._interval, *seq.checkpoints[after : after + 1]]
        ends += [(start // size + 1) * size for size in self._page_sizes if start % size]
        end = min(ends)
        whole = end // self._step * self._step
        return (whole if whole > start and end - start < seq.pending else end) - start

    def take(self, seq: Sequence, tokens: int) -> None:
        """Nothing is used up."""

    def release(self, seq: Sequence) -> None:
        """Nothing is held."""
