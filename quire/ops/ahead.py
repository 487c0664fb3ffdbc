"""Compiling ahead of the first step, for providers whose kernels are compiled when they are first launched.

Steps are run once without these kernels, which are only noted; then all that were noted are compiled at once, on all of
the host's cores, instead of one after another. Called by the runner; a provider enters itself in `AHEAD`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Ahead(Protocol):
    """What compiles the kernels of one provider."""

    def knows(self, run: str) -> bool:
        """Whether all kernels of the run called `run` have been compiled before, and kept."""
        ...

    def begin(self) -> None:
        """Get ready, beside other work."""
        ...

    def noting(self) -> AbstractContextManager[None]:
        """In this context kernels that would be compiled are noted and not launched: results are what memory held."""
        ...

    def compile(self, run: str) -> None:
        """Compile and keep what was noted. What does not compile here fails where it is launched."""
        ...


AHEAD: dict[str, Callable[[int], Ahead]] = {}
"""By provider; each takes the number of processes that may compile."""
