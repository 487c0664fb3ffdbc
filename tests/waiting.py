"""Waiting until something has happened, in place of sleeping: a busy machine may stand still for seconds."""

import time
from collections.abc import Callable

HANG_S = 60.0
"""Whoever takes longer hangs."""


def wait_for(condition: Callable[[], object], hang_s: float = HANG_S) -> None:
    """Wait until `condition` holds; AssertionError if it does not for `hang_s` seconds."""
    end = time.monotonic() + hang_s
    while not condition():
        assert time.monotonic() < end, f"this has not come true for {hang_s:g} s"
        time.sleep(0.01)
