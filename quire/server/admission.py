"""Admission: who may still enter. A full queue, a server that stops and a dead engine answer 503 at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from quire.server.errors import unavailable


class Admission:
    """Counts the sequences that are open and refuses more than may wait.

    Args:
        running: sequences that the engine runs at once.
        max_queued: sequences that may wait beyond those.

    Attributes:
        open: sequences admitted and not ended.
        draining: set when the server stops; nobody enters any more.
    """

    def __init__(self, running: int, max_queued: int) -> None:
        self._limit = running + max_queued
        self.open = 0
        self.draining = False

    def check(self) -> None:
        """Raise the 503 that a new request would get now, if any."""
        if self.draining:
            raise unavailable("The server is shutting down.", "shutting_down", 10)
        if self.open >= self._limit:
            raise unavailable("Too many requests are waiting; try again later.", "queue_full")

    @contextmanager
    def enter(self, sequences: int) -> Iterator[None]:
        """Hold a place for so many sequences. A large request may overshoot the limit once."""
        self.check()
        self.open += sequences
        try:
            yield
        finally:
            self.open -= sequences
