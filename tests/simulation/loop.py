"""`VirtualLoop`: an event loop whose clock stands still while code runs and jumps to whatever is due next.

So hours pass in milliseconds, and the order of events follows from the program and its seeds alone. Nothing real can be
waited for: a loop in which nothing is due says so instead of hanging.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class StuckError(AssertionError):
    """Somebody waits, and nothing will ever happen."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop, its own selector, whose clock stands still while code runs and jumps to whatever is due next."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = self
        self._clock_resolution = 1e-9
        self._now = 0.0

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def select(self, timeout: float | None) -> list[object]:
        """Nothing is ready outside; time passes."""
        if timeout is None:
            raise StuckError("everybody waits for ever")
        self._now += timeout
        return []

    def _process_events(self, events: list[object]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` in a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
