"""Grammars: a sequence waits while its grammar is compiled, and holds nothing meanwhile. Those that run are known."""

from quire.scheduler.sequence import Sequence


class Grammars:
    """Which grammars are not ready yet.

    Attributes:
        pending: their keys.
        bound: sequences that run and keep to a grammar.
        users: by key, the sequences that have not ended.
        given_up: keys whose last user has ended; others may have come for them since.
    """

    def __init__(self) -> None:
        self.pending: set[str] = set()
        self.bound: set[Sequence] = set()
        self.users: dict[str, set[Sequence]] = {}
        self.given_up: set[str] = set()

    def enter(self, seq: Sequence) -> None:
        """A sequence has come."""
        if seq.grammar is not None:
            self.users.setdefault(seq.grammar, set()).add(seq)

    def end(self, seq: Sequence) -> None:
        """A sequence has ended for good; what it holds is released once no plan holds it."""
        if seq.grammar is not None:
            self.users[seq.grammar].discard(seq)
            if not self.users[seq.grammar]:
                del self.users[seq.grammar]
                self.given_up.add(seq.grammar)

    def take_given_up(self) -> set[str]:
        """Those whose last user has ended since this was last asked, unless another has come."""
        taken, self.given_up = self.given_up, set()
        return {key for key in taken if key not in self.users}

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
        if seq.grammar is not None:
            self.bound.add(seq)

    def release(self, seq: Sequence) -> None:
        """Whoever compiles decides how long a grammar is kept."""
        self.bound.discard(seq)
