"""Admission: who may still enter. A full queue, a server that stops and a dead engine answer 503 at once.

Room is counted in sequences and in tokens of prompts. Callers share it: one who is alone may take all of it, and each
of k callers with open requests at most a k-th, so that a flood by one leaves room for the others.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from quire.server.errors import ApiError, unavailable

LONGEST_HINT_S = 60
MEMORY_S = 30.0
"""How fast sequences end is an average over about so long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be open at a time: sequences, and tokens of their prompts."""

    sequences: int
    tokens: int


class Admission:
    """Counts what is open and refuses more than may wait.

    Args:
        limits: for all callers together.
        clock: seconds; never goes back.

    Attributes:
        open: sequences admitted and not ended.
        draining: set when the server stops; nobody enters any more.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._sequences: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._pace = 0.0
        self._paced_at = clock()
        self.open = 0
        self.draining = False

    def check(self, caller: str) -> None:
        """Raise the 503 that a new request of `caller` would get now, if any."""
        if self.draining:
            raise unavailable("The server is shutting down.", "shutting_down", 10)
        callers = len(self._sequences) + (caller not in self._sequences)
        if self._sequences[caller] >= self._limits.sequences / callers:
            raise self._full("requests")
        if self._tokens[caller] >= self._limits.tokens / callers:
            raise self._full("tokens")

    @contextmanager
    def enter(self, sequences: int, tokens: int = 0, caller: str = "") -> Iterator[None]:
        """Hold a place for so many sequences and prompt tokens. A large request may overshoot the limit once."""
        self.check(caller)
        self.open += sequences
        self._sequences[caller] += sequences
        self._tokens[caller] += tokens
        try:
            yield
        finally:
            self._leave(sequences, tokens, caller)

    def _leave(self, sequences: int, tokens: int, caller: str) -> None:
        self.open -= sequences
        self._sequences[caller] -= sequences
        self._tokens[caller] -= tokens
        if not self._sequences[caller]:
            del self._sequences[caller], self._tokens[caller]
        now = self._clock()
        fade = math.exp((self._paced_at - now) / MEMORY_S)
        self._pace = self._pace * fade + sequences / MEMORY_S
        self._paced_at = now

    def _full(self, what: str) -> ApiError:
        # By then a tenth of what is open has ended, as things go.
        fade = math.exp((self._paced_at - self._clock()) / MEMORY_S)
        wait = 0.1 * self.open / max(self._pace * fade, 1e-3)
        hint = max(1, min(LONGEST_HINT_S, math.ceil(wait)))
        return unavailable(f"Too many {what} are waiting; try again later.", "queue_full", hint)
