"""`Pulse`: a page of memory that a core shares with those who watch over it: when it last moved, and how it fares.

The core writes, everybody else reads; nobody waits. Each number is written at once: who reads sees what it was or what
it is, and of several some may be new already. What a core wrote last is still there when it has died; that is the
point.
"""

import mmap
import os
import tempfile
import time
from collections.abc import Callable

from quire.messages.wire import Stats

SIZE = 4096
_MOVED, _PATIENCE = 0, 1
_COUNTS, _USAGE = slice(8, 15), 15
"""Places of numbers in the page, each of eight bytes."""

_TRIAL_AT, _TRIAL_MOST = 256, 512
_WORDS_AT, _WORDS_MOST = 1024, 2048
_LENGTH = 2
"""Bytes of a text's length, which stand before it."""


def shared_page() -> int:
    """A descriptor of a page that child processes may map; it leaves nothing behind."""
    try:
        descriptor = os.memfd_create("quire-pulse")
    except AttributeError:  # another system, or a Python that was built for an older C library
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, SIZE)
    return descriptor


class Pulse:
    """One page.

    Args:
        descriptor: from `shared_page`; by default a page that nobody else sees.
        clock: seconds, the same for all processes; never goes back.
    """

    def __init__(self, descriptor: int = -1, clock: Callable[[], float] = time.monotonic) -> None:
        self._page = mmap.mmap(descriptor, SIZE)
        # Not by struct, which clears a place before it writes there: who looks just then would see a time long past.
        self._times = memoryview(self._page).cast("d")
        self._counts = memoryview(self._page).cast("q")
        self._lengths = memoryview(self._page).cast("H")
        self._clock = clock

    def reset(self) -> None:
        """A core is about to start; none has been here."""
        self._page[:] = bytes(SIZE)
        self.loads()

    def loads(self) -> None:
        """The core that starts has moved."""
        self._times[_MOVED] = self._clock()

    def ready(self, patience_s: float) -> None:
        """The core serves from now on; one of its steps may take up to `patience_s` seconds."""
        self.loads()
        self._times[_PATIENCE] = max(patience_s, 1e-9)

    def beat(self, stats: Stats) -> None:
        """The core has moved: it made a step, or has looked and found nothing to do."""
        counts = (stats.running, stats.waiting, stats.preemptions, stats.prefix_queries, stats.prefix_hits)
        for place, count in enumerate((*counts, stats.steps, stats.step_tokens), _COUNTS.start):
            self._counts[place] = count
        self._times[_USAGE] = stats.kv_usage
        self._times[_MOVED] = self._clock()

    def trial(self, request_id: str) -> None:
        """The suspect that the core serves now, or nothing."""
        self._write(_TRIAL_AT, _TRIAL_MOST, request_id)

    def last_words(self, message: str) -> None:
        """Why the core ends."""
        self._write(_WORDS_AT, _WORDS_MOST, message)

    def still_s(self) -> float:
        """Seconds since the core last moved."""
        return self._clock() - self._times[_MOVED]

    @property
    def serves(self) -> bool:
        """Whether the core has started; before that it loads."""
        return self.patience_s > 0

    @property
    def patience_s(self) -> float:
        """How long a step of this core may take, as it said itself."""
        return self._times[_PATIENCE]

    @property
    def stats(self) -> Stats:
        """Of the core's last move."""
        running, waiting, *counts = self._counts[_COUNTS]
        return Stats(running, waiting, self._times[_USAGE], *counts)

    @property
    def tried(self) -> str:
        """See `trial`."""
        return self._read(_TRIAL_AT, _TRIAL_MOST)

    @property
    def said(self) -> str:
        """See `last_words`."""
        return self._read(_WORDS_AT, _WORDS_MOST)

    def _write(self, at: int, most: int, text: str) -> None:
        raw = text.encode("utf-8", "replace")[: most - _LENGTH]
        # The length last, and none before: of two texts nobody ever sees one that begins as this and ends as the other.
        self._lengths[at // _LENGTH] = 0
        self._page[at + _LENGTH : at + _LENGTH + len(raw)] = raw
        self._lengths[at // _LENGTH] = len(raw)

    def _read(self, at: int, most: int) -> str:
        length = min(self._lengths[at // _LENGTH], most - _LENGTH)
        return self._page[at + _LENGTH : at + _LENGTH + length].decode("utf-8", "ignore")
