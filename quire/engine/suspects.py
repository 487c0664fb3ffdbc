"""`Suspects`: which requests were being served when a core died, and which are served no more.

A request is known by what it asks, not by its id: whoever sends it again is recognised. The first death makes a
suspect, which is served as a trial from then on: the core runs trials one by one, so that a death has one cause, which
is quarantined. Everything is forgotten after a while. Pure bookkeeping; front ends tell each other the news.
"""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from quire.base.errors import RequestError
from quire.messages.control import CrashReport
from quire.messages.request import Request
from quire.messages.wire import Submit

MEMORY_S = 600.0
MOST = 1024
"""Suspects that are remembered; the oldest go first."""
APART_S = 1.0
"""Strikes nearer than this tell of one death, of which several like requests may be suspected: no core is begun again
sooner."""
MARGIN = 8
"""Tokens that a trial makes beyond what the request had made when the core died; reports may lag by a few steps."""


def fingerprint(request: Request) -> bytes:
    """The same for requests that ask the same."""
    return hashlib.blake2b(msgspec.msgpack.encode((request.token_ids, request.params)), digest_size=16).digest()


@dataclass(slots=True)
class _Known:
    """What is held against a request: when a core died last, how often, what it had made, whether it was the cause."""

    since: float = 0.0
    deaths: int = 0
    tokens: int = 0
    quarantined: bool = False


class Suspects:
    """Which requests were being served when a core died, and which are served no more.

    Args:
        clock: seconds; never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._known)

    def learn(self, report: CrashReport) -> None:
        """Take news of a death in; what is quarantined stays so."""
        now = self._clock()
        known = self._known.pop(report.print, None) or _Known(since=-math.inf)
        known.deaths += now - known.since >= APART_S
        known.since = now
        known.tokens = max(known.tokens, report.tokens)
        known.quarantined |= report.quarantined
        self._known[report.print] = known
        while len(self._known) > MOST:
            self._known.popitem(last=False)

    def submit(self, request: Request) -> Submit:
        """What to ask of the core: `request`, as a trial if a core has died while it was served.

        Raises RequestError if a core has died of it.
        """
        if self._known:
            self._forget()
        known = self._known.get(fingerprint(request)) if self._known else None
        if known is None:
            return Submit(request)
        if known.quarantined:
            raise RequestError(
                "the engine failed twice while it served this request, so it is refused for ten minutes; change it",
                code="poison_request",
            )
        return Submit(request, known.tokens + MARGIN, known.deaths > 1)

    def clear(self, request: Request) -> None:
        """`request` was served to its end: nothing is held against it any more."""
        self._known.pop(fingerprint(request), None)

    def _forget(self) -> None:
        now = self._clock()
        while self._known:
            print, known = next(iter(self._known.items()))
            if now - known.since <= MEMORY_S:
                return
            del self._known[print]
