"""`Trials`: requests that were there when an earlier core died are begun one after the other.

Which one is at work stands in the pulse's page, so that a death has a name. A trial is over when the request has made
as many tokens as were asked, or has ended; then it is a request like any other, and the next one begins.
"""

from collections import deque
from collections.abc import Callable, Collection

from quire.engine.pulse import Pulse
from quire.messages.wire import Delta, Submit

Begin = Callable[[bytes, Submit], bool]
"""Gives a front end's request to the scheduler; whether it was taken."""


class Trials:
    """See the module.

    Args:
        pulse: where the request on trial is named.
        begin: called for each when its turn has come.
    """

    def __init__(self, pulse: Pulse, begin: Begin) -> None:
        self._pulse = pulse
        self._begin = begin
        self._waiting: deque[tuple[bytes, Submit]] = deque()
        self._now = ""
        self._left = 0

    def add(self, client: bytes, submit: Submit) -> None:
        """Begin `submit` when all that came before have passed."""
        self._waiting.append((client, submit))
        self._next()

    def saw(self, deltas: list[Delta]) -> None:
        """News of sequences."""
        if not self._now:
            return
        for delta in deltas:
            if delta.id == self._now:
                self._left -= len(delta.token_ids)
                if self._left <= 0 or delta.finish_reason is not None:
                    self._over()
                    return

    def gone(self, ids: Collection[str]) -> None:
        """These requests have ended in another way."""
        if self._waiting:
            self._waiting = deque(entry for entry in self._waiting if entry[1].request.id not in ids)
        if self._now in ids:
            self._over()

    def left(self, client: bytes) -> None:
        """A front end has died: what it wanted tried is wanted no more."""
        self.gone([submit.request.id for owner, submit in self._waiting if owner == client])

    def _over(self) -> None:
        self._now = ""
        self._pulse.trial("")
        self._next()

    def _next(self) -> None:
        while not self._now and self._waiting:
            client, submit = self._waiting.popleft()
            self._now, self._left = submit.request.id, submit.trial
            # Named before it begins: taking it in may be what kills.
            self._pulse.trial(self._now)
            if not self._begin(client, submit):
                self._now = ""
                self._pulse.trial("")
