"""Progress bars for long work: weights that load, requests that run. Shown on terminals only, on standard error."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Never

from tqdm import tqdm


def bar(total: int, unit: str, shown: bool = True) -> "tqdm[Never]":
    """A bar over `total` pieces of work; silent where standard error is no terminal."""
    return tqdm(total=total, unit=f" {unit}", disable=not (shown and sys.stderr.isatty()), dynamic_ncols=True)


@contextlib.contextmanager
def weights_progress(name: str, on_progress: Callable[[], None] = lambda: None) -> Iterator[Callable[[int, int], None]]:
    """A bar over the bytes of a checkpoint, fed with (bytes so far, bytes in all); calls `on_progress` with each."""
    with tqdm(desc=f"loading {name}", unit="B", unit_scale=True, disable=not sys.stderr.isatty(), leave=False) as made:

        def update(done: int, total: int) -> None:
            made.total = total
            made.update(done - made.n)
            on_progress()

        yield update
