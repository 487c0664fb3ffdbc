"""Grammars: a sequence whose grammar is being compiled waits, and holds nothing meanwhile."""

from quire.scheduler.sequence import Sequence


class Grammars:
    """Which grammars are not ready yet.

    Attributes:
        pending: their keys.
    """

    def __init__(self) -> None:
        self.pending: set[str] = set()

    def holds(self, seq: Sequence) -> bool:
        """Whether `seq` waits for its grammar."""
        return seq.grammar in self.pending

    def new_step(self) -> None:
        """Nothing is counted by steps."""

    def offer(self, seq: Sequence, tokens: int) -> int:
        """Everything, once the grammar is ready; a sequence that runs has all it needs."""
        return tokens if seq.row >= 0 or not self.holds(seq) else 0

    def take(self, seq: Sequence, tokens: int) -> None:
        """Nothing is used up."""

    def release(self, seq: Sequence) -> None:
        """Nothing is held: whoever compiles decides how long a grammar is kept."""
