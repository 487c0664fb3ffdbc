"""Python's collector of cycles, held while much is made that stays: imports and the start of an engine.

It would go through everything that was made so far again and again; importing torch takes a quarter less without it.
"""

import contextlib
import gc
from collections.abc import Iterator


def keep_what_lives() -> None:
    """What lives now lives for ever: the collector need not look at it again. Called when a process begins to serve."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No collection within the block (or the function, as a decorator); afterwards as before."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
