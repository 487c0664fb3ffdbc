"""`Trials`: requests that were there when an earlier core died are begun one after the other.

Which one is at work stands in the pulse's page, so that a death has a name; but only while it is beside none that is
not known to be harmless, or the name might be wrong. Who was there at two deaths is tried alone: whatever else is asked
is held meanwhile. A trial is over when the request has made as many tokens as were asked, or has ended; then it is a
request like any other, and the next one begins.
"""

from collections import deque
from collections.abc import Callable, Collection

from quire.engine.pulse import Pulse
from quire.messages.wire import Delta, Submit

Begin = Callable[[bytes, Submit], bool]
"""Gives a front end's request to the scheduler; whether it was taken."""

Entry = tuple[bytes, Submit]


class Trials:
    """Begins requests that were there when an earlier core died one after the other. Every request comes through here.

    Args:
        pulse: where the request on trial is named.
        begin: called for each when its turn has come.
    """

    def __init__(self, pulse: Pulse, begin: Begin) -> None:
        self._pulse = pulse
        self._begin = begin
        self._waiting: deque[Entry] = deque()
        self._held: deque[Entry] = deque()
        self._untried: set[str] = set()
        self._now: Submit | None = None
        self._left = 0
        self._named = ""

    @property
    def waiting(self) -> int:
        """Requests that were not begun yet."""
        return len(self._waiting) + len(self._held)

    def add(self, client: bytes, submit: Submit) -> None:
        """Begin `submit` when its turn has come; that of most is now."""
        if submit.trial:
            self._waiting.append((client, submit))
        else:
            self._held.append((client, submit))
        self._go_on()

    def saw(self, deltas: list[Delta]) -> None:
        """News of sequences."""
        if self._now is None:
            return
        for delta in deltas:
            if delta.id == self._now.request.id:
                self._left -= len(delta.token_ids)
        if self._left <= 0:
            self._over()

    def gone(self, ids: Collection[str]) -> None:
        """These requests have ended, or are wanted no more."""
        if self._waiting or self._held:
            self._waiting = deque(entry for entry in self._waiting if entry[1].request.id not in ids)
            self._held = deque(entry for entry in self._held if entry[1].request.id not in ids)
        self._untried.difference_update(ids)
        if self._now is not None and self._now.request.id in ids:
            self._over()
        elif self._now is not None or self.waiting:
            self._go_on()

    def left(self, client: bytes) -> None:
        """A front end has died: what it asked and was not begun is wanted no more."""
        self.gone([submit.request.id for owner, submit in (*self._waiting, *self._held) if owner == client])

    def _over(self) -> None:
        self._now = None
        self._go_on()

    def _go_on(self) -> None:
        while self._now is None and self._waiting and not (self._waiting[0][1].alone and self._untried):
            client, submit = self._waiting.popleft()
            self._now, self._left = submit, submit.trial
            # Named before it begins: taking it in may be what kills.
            self._name()
            if not self._begin(client, submit):
                self._now = None
        while self._held and not self._one_alone():
            client, submit = self._held.popleft()
            self._untried.add(submit.request.id)
            self._name()
            if not self._begin(client, submit):
                self._untried.discard(submit.request.id)
        self._name()

    def _one_alone(self) -> bool:
        """Whether one is tried alone, or waits to be."""
        return (self._now is not None and self._now.alone) or any(submit.alone for _, submit in self._waiting)

    def _name(self) -> None:
        name = "" if self._now is None or self._untried else self._now.request.id
        if name != self._named:
            self._named = name
            self._pulse.trial(name)
