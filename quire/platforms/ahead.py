"""Memory for packed weights that is cleared before they are read.

The first touch of fresh memory, for which the system clears each page, is most of what loading costs on a CPU, and
importing torch keeps one core busy for seconds while the others idle. So a thread touches huge pages meanwhile, and
weights take theirs from there. Begun and dropped by `engine/begin.py`, taken from by `kernels/cpu`; it needs no torch.
"""

import contextlib
import ctypes
import mmap
import sys
import threading
from collections.abc import Iterator
from functools import cache

from quire.platforms import cores, native
from quire.platforms.cpu import VECTORS
from quire.platforms.host import look

HUGE_PAGE = 2 << 20
PIECE = 4 * HUGE_PAGE
"""Touched at once: whoever wants the thread to end waits no longer than for this."""


def pays(device: str, kernels: str) -> bool:
    """Whether a core idles while torch is imported, and this process will then pack weights for quire's CPU kernels.

    Args:
        device, kernels: as the user named them.

    Where memory has several nodes, whoever reads a weight shall touch it first.
    """
    if "torch" in sys.modules or kernels not in ("auto", "cpu") or device not in ("auto", "cpu"):
        return False
    host, nodes = look(), cores.physical()
    on_cpu = device == "cpu" or not host.gpu_vendors or host.gpus_hidden
    packs = host.has_native and bool(VECTORS & host.cpu_flags)
    return on_cpu and packs and len(nodes) == 1 and len(nodes[0]) > 1


class HugePages:
    """Fresh memory on huge pages: `view` is `size` bytes of zeros that nobody has touched, at `address`."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._first = -start % HUGE_PAGE
        self.address = start + self._first
        self.view = memoryview(self._memory)[self._first : self._first + size]
        native.use_huge_pages(self.address, size)

    def empty(self, first: int) -> None:
        """Give back what lies behind `first`, the start of a page."""
        if first < len(self.view):
            self._memory.madvise(mmap.MADV_DONTNEED, self._first + first, len(self.view) - first)


class Ahead:
    """Memory of this process that is being cleared; used by one thread."""

    def __init__(self) -> None:
        self._pages: HugePages | None = None
        self._given = 0
        self._stop = threading.Event()

    @contextlib.contextmanager
    def clearing(self, size: int) -> Iterator[None]:
        """Within the block a thread clears up to `size` bytes, for `take`; none if the system grants none so large.

        A block that fails leaves nothing behind.
        """
        self.drop()
        with contextlib.suppress(OSError):
            self._pages = HugePages(size) if size else None
        if self._pages is None:
            yield
            return
        self._stop.clear()
        thread = threading.Thread(target=self._touch, args=(self._pages.address, size), daemon=True, name="ahead")
        thread.start()
        try:
            try:
                yield
            finally:
                self._stop.set()
                thread.join()
        except BaseException:
            self.drop()
            raise

    def take(self, size: int) -> memoryview:
        """`size` bytes of zeros from the start of a page on, for the caller alone; cleared already if possible."""
        first = self._given
        if self._pages is None or first + size > len(self._pages.view):
            return HugePages(size).view
        self._given += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        return self._pages.view[first : first + size]

    def drop(self) -> None:
        """Give back what nobody took."""
        if self._pages is not None:
            self._pages.empty(self._given)
        self._pages, self._given = None, 0

    def _touch(self, address: int, size: int) -> None:
        for first in range(0, size, PIECE):
            if self._stop.is_set():
                return
            ctypes.memset(address + first, 0, min(PIECE, size - first))


@cache
def ahead() -> Ahead:
    """This process's."""
    return Ahead()
