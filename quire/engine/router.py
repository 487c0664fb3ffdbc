"""`Router`: between one core and its front ends: who asked what, who is told what. It moves no bytes, waits for nobody.

`engine/process.py` turns it over ZeroMQ; the simulator of the tests turns it over a network that it makes up. A peer
that has not said a valid `Hello` is not heard; one that has died is forgotten, with all that it asked.
"""

import hmac
from collections.abc import Callable

from quire.base.errors import RequestError, TransportError
from quire.base.logging import get_logger
from quire.engine.core import EngineCore
from quire.engine.pulse import Pulse
from quire.engine.trials import Trials
from quire.messages.codec import Codec
from quire.messages.wire import (
    FAILED,
    Abort,
    Delta,
    Deltas,
    Failed,
    Finish,
    FromClient,
    Hello,
    Refused,
    ResetPrefixCache,
    Stats,
    Submit,
    ToClient,
)
from quire.scheduler.roster import OWN_FAULT
from quire.version import __version__

log = get_logger("quire.engine")

MOST_CLIENTS = 1024
"""Front ends at a time; there are a few, so whoever makes more of them is none."""


class Router:
    """Between one core and its front ends: who asked what, who is told what.

    Args:
        core: what serves.
        pulse: beats with every turn.
        send: takes a message to a client, without waiting.
        secret: what a front end must know.
    """

    def __init__(
        self, core: EngineCore, pulse: Pulse, send: Callable[[bytes, ToClient], None], secret: str = ""
    ) -> None:
        self._core = core
        self._pulse = pulse
        self._send = send
        self._secret = secret
        self._codec: Codec[FromClient] = Codec(FromClient)
        self._clients: dict[bytes, str] = {}  # and the front end's name
        self._owners: dict[str, tuple[bytes, int]] = {}  # request id: its front end, and sequences still to end
        self._trials = Trials(pulse, self._begin)
        self._gone: set[str] = set()
        self._busy = False
        self.dropped = 0

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return len(self._owners) + self._trials.waiting

    def turn(self) -> bool:
        """One turn of the core, and its news to those whom they concern. Whether it is worth turning again at once.

        While the core pauses nothing is done: whoever comes meanwhile joins its next step.
        """
        if self._core.pause_ms:
            return self._busy
        deltas = self._core.turn()
        before, self._busy = self._busy, deltas is not None
        stats = self._core.scheduler.stats()
        self._pulse.beat(stats)
        if deltas:
            self._publish(deltas, stats)
            self._trials.saw(deltas)
        if before and not self._busy:
            self._tell_all(Deltas([], stats))
        return self._busy

    def collect(self) -> None:
        """Grammars have been compiled, or cannot be."""
        for refusal in self._core.grammars.collect():
            owner = self._owners.pop(refusal.id, None)
            if owner is not None:
                self._send(owner[0], refusal)
            self._trials.gone([refusal.id])

    def fail(self, message: str) -> None:
        """Tell every front end that there is no engine any more."""
        self._tell_all(Failed(message))

    def gone(self, name: str) -> None:
        """The front end `name` has died: it wants nothing more, and what may still come from it is not heard."""
        self._gone.add(name)
        for client in [client for client, each in self._clients.items() if each == name]:
            del self._clients[client]
            self._trials.left(client)
            self._abort([request_id for request_id, owner in self._owners.items() if owner[0] == client])

    def handle(self, client: bytes, frame: bytes) -> None:
        """A frame of a client; one that is no message, or comes from no front end, is dropped."""
        try:
            message = self._codec.decode(frame)
            if isinstance(message, Hello):
                self._greet(client, message)
            elif client not in self._clients:
                raise TransportError("it came before a valid Hello")
            else:
                self._heed(client, message)
        except TransportError as error:
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:  # the log must not grow as fast as somebody can send
                log.warning("dropped a frame, %d in all: %s", self.dropped, error)

    def _greet(self, client: bytes, hello: Hello) -> None:
        known = hmac.compare_digest(hello.secret.encode(), self._secret.encode()) and hello.name not in self._gone
        if not known or len(self._clients) >= MOST_CLIENTS:
            raise TransportError("somebody who is no front end of this server said Hello")
        if hello.version != __version__:
            self._send(client, Failed(f"the engine is version {__version__}, its client {hello.version[:40]!r}"))
            return
        self._clients[client] = hello.name
        self._send(client, self._core.facts)

    def _heed(self, client: bytes, message: Submit | Abort | Finish | ResetPrefixCache) -> None:
        if isinstance(message, Submit):
            self._trials.add(client, message)
        elif isinstance(message, Finish):
            # No delta will end this sequence any more, unless one already has.
            if self._owns(client, message.id) and self._core.scheduler.finish(
                message.id, message.index, message.tokens
            ):
                self._count_end(message.id)
        elif isinstance(message, Abort):
            self._abort([each for each in message.ids if self._owns(client, each)])
            self._trials.gone(message.ids)
        else:
            self._core.scheduler.reset_prefix_cache()

    def _owns(self, client: bytes, request_id: str) -> bool:
        owner = self._owners.get(request_id)
        return owner is not None and owner[0] == client

    def _abort(self, ids: list[str]) -> None:
        self._core.abort(ids)
        for request_id in ids:
            self._owners.pop(request_id, None)
        self._trials.gone(ids)

    def _begin(self, client: bytes, message: Submit) -> bool:
        request = message.request
        try:
            if request.id in self._owners:
                raise RequestError("the request id is in use; ids must be unique", "request_id")
            self._core.add(request)
        except RequestError as error:
            self._send(client, Refused(request.id, error.message, error.param, error.code))
            return False
        except Exception:
            # Whatever it is, it belongs to this request: the others must go on.
            log.exception("request %s: the engine failed to take it in", request.id)
            self._core.abort([request.id])
            self._send(client, Refused(request.id, OWN_FAULT, None, FAILED))
            return False
        self._owners[request.id] = (client, request.params.n)
        return True

    def _publish(self, deltas: list[Delta], stats: Stats) -> None:
        frames: dict[bytes, list[Delta]] = {}
        for delta in deltas:
            owner = self._owners.get(delta.id)
            if owner is None:
                continue
            frames.setdefault(owner[0], []).append(delta)
            if delta.finish_reason is not None:
                self._count_end(delta.id)
        for client, news in frames.items():
            self._send(client, Deltas(news, stats))

    def _count_end(self, request_id: str) -> None:
        """One of a request's sequences has ended; with the last one the request is forgotten."""
        client, left = self._owners[request_id]
        if left > 1:
            self._owners[request_id] = (client, left - 1)
            return
        del self._owners[request_id]
        self._trials.gone([request_id])

    def _tell_all(self, message: ToClient) -> None:
        for client in self._clients:
            self._send(client, message)
