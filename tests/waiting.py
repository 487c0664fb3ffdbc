"""Waiting until something has happened, in place of sleeping: a busy machine may stand still for seconds."""

import time
from collections.abc import Callable

HANG_S = 60.0
"""Whoever takes longer hangs."""


def wait_for(
    condition: Callable[[], object],
    hang_s: float = HANG_S,
    said: Callable[[], str] = lambda: "what is waited for has not come true",
) -> None:
    """Wait until `condition` holds; AssertionError with what is `said` if it does not for `hang_s` seconds."""
    end = time.monotonic() + hang_s
    while not condition():
        assert time.monotonic() < end, said()
        time.sleep(0.01)
