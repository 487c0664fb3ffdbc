"""`HashChain` and `PrefixIndex`: full pages found again by what stands in them and before them.

A page's key is a keyed hash over (the key of the page before, its tokens); the first stands on the tenant's salt. The
hash key is random per process, so that nobody outside can make two prompts collide or test for one. Which pages are
referenced is the pool's business.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_BYTES = 16


class HashChain:
    """Keys of the full pages of one token sequence, extended as tokens become known."""

    __slots__ = ("_empty", "_root", "hashes", "page_size")

    def __init__(self, key: bytes, salt: bytes, page_size: int) -> None:
        self.page_size = page_size
        self.hashes: list[bytes] = []
        self._empty = blake2b(key=key, digest_size=DIGEST_BYTES)
        self._root = blake2b(salt, key=key, digest_size=DIGEST_BYTES, person=b"quire root").digest()

    def extend(self, tokens: Sequence[int]) -> list[bytes]:
        """Keys of all full pages of `tokens`; what was given before must be a prefix of it."""
        hashes, done = self.hashes, len(self.hashes)
        pages = len(tokens) // self.page_size - done
        if pages > 0:
            start = done * self.page_size
            numbers = array("i")
            numbers.fromlist(list(tokens[start : start + pages * self.page_size]))
            contents = memoryview(numbers).cast("B")
            size = len(contents) // pages
            parent = hashes[-1] if hashes else self._root
            for at in range(0, len(contents), size):
                state = self._empty.copy()
                state.update(parent)
                state.update(contents[at : at + size])
                parent = state.digest()
                hashes.append(parent)
        return hashes


class PrefixIndex:
    """Key of a full page to its number, and back. Each page and each key at most once."""

    def __init__(self) -> None:
        self.pages: dict[bytes, int] = {}
        self.hashes: dict[int, bytes] = {}

    def __contains__(self, page: int) -> bool:
        return page in self.hashes

    def add(self, key: bytes, page: int) -> bool:
        """Enter a page; the first one with a key stays. Returns whether it was entered."""
        if key in self.pages:
            return False
        self.pages[key] = page
        self.hashes[page] = key
        return True

    def forget(self, page: int) -> None:
        """Nobody new will find this page."""
        key = self.hashes.pop(page, None)
        if key is not None:
            del self.pages[key]
