"""Python's collector of cycles, held while much is made that stays: imports and the start of an engine.

It would go through everything that was made so far again and again; importing torch takes a quarter less without it.
"""

import contextlib
import gc
from collections.abc import Iterator


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
