"""Python's collector of cycles, held while much is made that stays, and kept from going through what is there to stay.

It would do that again and again: importing torch takes a quarter less without it.
"""

import contextlib
import gc
from collections.abc import Iterator

MOST_YOUNG = 50_000
"""Objects made and not yet freed before the collector looks. News of a thousand sequences are some 10,000: with fewer
it would run within steps, and every few seconds go through all that lives, which holds up streams for 10 ms."""


def keep_what_lives() -> None:
    """What lives now lives for ever: the collector need not look at it again. Called when a process begins to serve."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(MOST_YOUNG)


@contextlib.contextmanager
def what_lives_spared() -> Iterator[None]:
    """The collector looks only at what is made within the block (or the function, as a decorator), and seldom.

    Going through a process that has imported torch takes 100 ms and more, in which no step is launched. Nothing is done
    where something is frozen already: only who has frozen may let go of it.
    """
    if gc.get_freeze_count():
        yield
        return
    young, *older = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(young and max(young, MOST_YOUNG), *older)
    try:
        yield
    finally:
        gc.set_threshold(young, *older)
        gc.unfreeze()


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
