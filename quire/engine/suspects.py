"""`Suspects`: which requests were being served when a core died, and which are served no more.

A request is known by what it asks, not by its id: whoever sends it again is recognised. The first death makes a
suspect, which is served as a trial from then on: the core runs trials one by one, so that a second death has one cause.
That one is quarantined. Everything is forgotten after a while. Pure bookkeeping; front ends tell each other the news.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from quire.base.errors import RequestError
from quire.messages.control import Strike
from quire.messages.request import Request

MEMORY_S = 600.0
MOST = 1024
"""Suspects that are remembered; the oldest go first."""
MARGIN = 8
"""Tokens that a trial makes beyond what the request had made when the core died; reports may lag by a few steps."""


def fingerprint(request: Request) -> bytes:
    """The same for requests that ask the same."""
    return hashlib.blake2b(msgspec.msgpack.encode((request.token_ids, request.params)), digest_size=16).digest()


class Suspects:
    """See the module.

    Args:
        clock: seconds; never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[Strike, float]] = OrderedDict()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._known)

    def learn(self, strike: Strike) -> None:
        """Take news in; what is condemned stays so."""
        before = self._known.pop(strike.print, None)
        if before is not None:
            condemned = strike.condemned or before[0].condemned
            strike = Strike(strike.print, max(strike.tokens, before[0].tokens), condemned)
        self._known[strike.print] = strike, self._clock()
        while len(self._known) > MOST:
            self._known.popitem(last=False)

    def trial(self, request: Request) -> int:
        """How many tokens `request` must make as a trial; 0 if nothing is held against it.

        Raises RequestError if a core has died of it.
        """
        if not self._known:
            return 0
        self._forget()
        known = self._known.get(fingerprint(request))
        if known is None:
            return 0
        if known[0].condemned:
            raise RequestError(
                "the engine failed twice while it served this request, so it is refused for ten minutes; change it",
                code="poison_request",
            )
        return known[0].tokens + MARGIN

    def clear(self, request: Request) -> None:
        """`request` was served to its end: nothing is held against it any more."""
        self._known.pop(fingerprint(request), None)

    def _forget(self) -> None:
        now = self._clock()
        while self._known:
            print, (_, since) = next(iter(self._known.items()))
            if now - since <= MEMORY_S:
                return
            del self._known[print]
