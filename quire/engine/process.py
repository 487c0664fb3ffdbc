"""The engine core as a process: `python -m quire.engine.process`, started by `engine/launch.py`.

One thread, one selector: front ends' messages, the launcher's end, the core's turns. It waits only when no plan can be
made and none is in flight, so an idle engine costs next to no CPU. After each turn its pulse beats; SIGUSR1 makes it
write its stacks, whatever it does.
"""

import faulthandler
import gc
import os
import signal
import sys
import time
import traceback

import msgspec
import psutil
import zmq

from quire.base.errors import QuireError, RequestError, TransportError
from quire.base.lifeline import die_with_parent
from quire.base.logging import get_logger, setup
from quire.engine.core import EngineCore, MakeExecutor, Timeline, executor_for
from quire.engine.launch import Launch
from quire.engine.progress import weights_progress
from quire.engine.pulse import Pulse
from quire.engine.trials import Trials
from quire.messages.codec import MAX_FRAME_BYTES, Codec
from quire.messages.wire import (
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
from quire.version import __version__

log = get_logger("quire.engine")

FAREWELL_S = 2.0
"""How long a core that cannot start waits for a front end to tell it why."""

BEAT_MS = 250
"""How often the pulse of an idle core beats."""


class Server:
    """Front ends on one side, the core on the other.

    Args:
        address: where to listen.
        launcher: descriptor that becomes readable when the launcher has ended.
        pulse: beats with every turn.
    """

    def __init__(self, address: str, launcher: int, pulse: Pulse) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set_hwm(0)
        self._socket.linger = 1000
        # Whoever announces more is cut off before memory is taken for it.
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.bind(address)
        self._launcher = launcher
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(launcher, zmq.POLLIN)
        self._codec: Codec[FromClient] = Codec(FromClient)
        self._clients: list[bytes] = []
        self._owners: dict[str, tuple[bytes, int]] = {}  # request id: its front end, and sequences still to end
        self._pulse = pulse
        self._trials = Trials(pulse, self._begin)

    def run(self, core: EngineCore) -> None:
        """Serve until the launcher ends."""
        self._core = core
        self._poller.register(core.grammars.descriptor, zmq.POLLIN)
        self._pulse.ready(core.patience_s)
        idle = True
        while self._intake(wait=idle):
            deltas = core.turn()
            busy = deltas is not None
            stats = core.scheduler.stats()
            self._pulse.beat(stats)
            if deltas:
                self._publish(deltas, stats)
                self._trials.saw(deltas)
            if not busy and not idle:
                self._tell_all(Deltas([], stats))
            idle = not busy

    def fail(self, message: str) -> None:
        """Tell every front end, also one that is only about to say hello, that there is no engine."""
        self._pulse.last_words(message)
        deadline = time.monotonic() + FAREWELL_S
        while not self._clients and time.monotonic() < deadline:
            if self._socket.poll(100):
                self._clients.append(self._socket.recv_multipart()[0])
        self._tell_all(Failed(message))

    def close(self) -> None:
        """Send what is queued, then close."""
        self._socket.close()
        self._context.term()

    def _intake(self, wait: bool) -> bool:
        """Take in what has arrived; with `wait`, give it a moment to. False once the launcher has ended."""
        ready = dict(self._poller.poll(BEAT_MS if wait else 0))
        if self._launcher in ready and not os.read(self._launcher, 4096):
            return False
        if self._core.grammars.descriptor in ready:
            self._refuse(self._core.grammars.collect())
        if self._socket in ready:
            while self._socket.poll(0):
                client, *frames = self._socket.recv_multipart()
                self._handle(client, frames)
        return True

    def _handle(self, client: bytes, frames: list[bytes]) -> None:
        try:
            (frame,) = frames
            message = self._codec.decode(frame)
        except (TransportError, ValueError) as error:
            log.warning("dropped a frame: %s", error)
            return
        if isinstance(message, Submit):
            self._submit(client, message)
        elif isinstance(message, Finish):
            # No delta will end this sequence any more, unless one already has.
            if self._core.scheduler.finish(message.id, message.index, message.tokens):
                self._count_end(message.id)
                self._trials.gone([message.id])
        elif isinstance(message, Abort):
            self._core.abort(message.ids)
            for request_id in message.ids:
                self._owners.pop(request_id, None)
            self._trials.gone(message.ids)
        elif isinstance(message, Hello):
            if message.version != __version__:
                self._tell(client, Failed(f"the engine is version {__version__}, its client {message.version[:40]!r}"))
                return
            self._clients.append(client)
            self._tell(client, self._core.facts)
        elif isinstance(message, ResetPrefixCache):
            self._core.scheduler.reset_prefix_cache()

    def _submit(self, client: bytes, message: Submit) -> None:
        if message.trial:
            self._trials.add(client, message)
        else:
            self._begin(client, message)

    def _begin(self, client: bytes, message: Submit) -> bool:
        request = message.request
        try:
            self._core.add(request)
        except RequestError as error:
            self._tell(client, Refused(request.id, error.message, error.param, error.code))
            return False
        self._owners[request.id] = (client, request.params.n)
        return True

    def _refuse(self, refused: list[Refused]) -> None:
        """Tell the front ends whose requests cannot be served after all."""
        for refusal in refused:
            owner = self._owners.pop(refusal.id, None)
            if owner is not None:
                self._tell(owner[0], refusal)
            self._trials.gone([refusal.id])

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
            self._tell(client, Deltas(news, stats))

    def _count_end(self, request_id: str) -> None:
        """One of a request's sequences has ended; with the last one the request is forgotten."""
        owner = self._owners.pop(request_id, None)
        if owner is not None and owner[1] > 1:
            self._owners[request_id] = (owner[0], owner[1] - 1)

    def _tell_all(self, message: ToClient) -> None:
        for client in self._clients:
            self._tell(client, message)

    def _tell(self, client: bytes, message: ToClient) -> None:
        self._socket.send_multipart([client, self._codec.encode(message)])


def main(make_executor: MakeExecutor = executor_for) -> int:
    """Read the launch message, start the core, serve. `make_executor` stands in for ranks where none are measured."""
    die_with_parent()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    launch = msgspec.json.decode(_first_line(sys.stdin.fileno()), type=Launch)
    setup(launch.config.log.log_level, launch.config.log.log_format)
    server = Server(launch.address, sys.stdin.fileno(), Pulse(launch.pulse))
    timeline = Timeline(age_s=time.time() - psutil.Process().create_time())
    try:
        with weights_progress(launch.model.name) as progress:
            core = EngineCore(launch.config, launch.model, progress, timeline, make_executor)
    except QuireError as error:
        server.fail(str(error))
        server.close()
        return 2
    # What lives now lives for ever: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    try:
        server.run(core)
        return 0
    except Exception as error:
        log.error("%s", traceback.format_exc())
        server.fail(f"the engine failed: {type(error).__name__}")
        return 1
    finally:
        server.close()
        core.close()


def _first_line(descriptor: int) -> bytes:
    """Up to the newline, and not a byte more: the rest of standard input is the launcher's life line."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(descriptor, 1)
        if not piece:
            raise SystemExit("quire.engine.process is started by quire, not by hand")
        line += piece
    return bytes(line)


if __name__ == "__main__":
    sys.exit(main())
