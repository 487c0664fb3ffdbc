"""`Resource`: something scarce that grants tokens. The scheduler asks all of them in a loop and knows no other feature.

Each file in `resources/` is one; to add one (an encoder budget, adapter slots, a grammar that compiles), write a file
there and name it in `Roster.__init__`.
"""

from typing import Protocol

from quire.scheduler.sequence import Sequence


class Resource(Protocol):
    """Offer all, then take all: nothing is ever rolled back."""

    def new_step(self) -> None:
        """A new plan begins."""

    def offer(self, seq: Sequence, tokens: int) -> int:
        """How many of the next `tokens` tokens of `seq` can be served now; changes nothing."""

    def take(self, seq: Sequence, tokens: int) -> None:
        """Serve them. `seq.computed` does not count them yet."""

    def release(self, seq: Sequence) -> None:
        """`seq` has left (for good, or to be computed again later); no plan holds it any more."""
