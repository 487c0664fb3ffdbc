"""The engine core as a process: `python -m quire.engine.process`, started by `engine/launch.py`.

One thread, one selector: front ends' messages, the launcher's end, the core's turns. It waits when no plan can be made
and none is in flight, so an idle engine costs next to no CPU; and while a step runs, until the next plan must be made:
requests that come meanwhile join it. After each turn its pulse beats; SIGUSR1 makes it write its stacks.
"""

import faulthandler
import os
import signal
import sys
import traceback

import msgspec
import zmq

from quire.base.age import process_age_s
from quire.base.collector import keep_what_lives
from quire.base.errors import EngineError, QuireError
from quire.base.lifeline import die_with_parent
from quire.base.logging import get_logger, setup, write_aside
from quire.engine.begin import MakeExecutor, Timeline, begin, executor_for
from quire.engine.core import EngineCore
from quire.engine.launch import LENGTH_BYTES, Launch
from quire.engine.progress import weights_progress
from quire.engine.pulse import Pulse
from quire.engine.router import Router
from quire.messages.codec import MAX_FRAME_BYTES, Codec
from quire.messages.control import FrontGone
from quire.messages.wire import Failed, ToClient

log = get_logger("quire.engine")

FAREWELL_S = 2.0
"""How long a core that cannot start waits for a front end to tell it why."""

BEAT_MS = 250
"""How often the pulse of an idle core beats."""


class Server:
    """Front ends on one side, the core on the other.

    Args:
        launch: where to listen, and what a front end must know.
        launcher: descriptor that becomes readable when the launcher has news, or has ended.
        pulse: beats with every turn.

    Raises:
        EngineError: it cannot listen there.
    """

    def __init__(self, launch: Launch, launcher: int, pulse: Pulse) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set_hwm(0)
        self._socket.linger = 1000
        # Whoever announces more is cut off before memory is taken for it.
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        try:
            self._socket.bind(launch.address)
        except zmq.ZMQError as error:
            self.close()
            raise EngineError(
                f"the engine cannot listen at {launch.address}: {error}; let TMPDIR name a folder with a shorter path"
            ) from error
        self._secret = launch.secret
        self._launcher = launcher
        self._heard = bytearray()
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(launcher, zmq.POLLIN)
        self._encode = Codec[ToClient](ToClient).encode
        self._pulse = pulse
        self._router: Router | None = None

    def run(self, core: EngineCore) -> None:
        """Serve until the launcher ends."""
        self._router = router = Router(core, self._pulse, self._send, self._secret)
        bell = core.grammars.descriptor
        self._poller.register(bell, zmq.POLLIN)
        self._pulse.ready(core.patience_s)
        busy = False
        while True:
            ready = dict(self._poller.poll(core.pause_ms if busy else BEAT_MS))
            if self._launcher in ready and not self._listen(router):
                return
            if bell in ready:
                router.collect()
            while self._socket.poll(0):
                client, *frames = self._socket.recv_multipart()
                router.handle(client, b"".join(frames))
            busy = router.turn()

    def fail(self, message: str) -> None:
        """Tell every front end, also one that is only about to say hello, that there is no engine."""
        self._pulse.last_words(message)
        if self._router is not None:
            self._router.fail(message)
        elif self._socket.poll(int(FAREWELL_S * 1000)):
            self._send(self._socket.recv_multipart()[0], Failed(message))

    def close(self) -> None:
        """Send what is queued, then close."""
        self._socket.close()
        self._context.term()

    def _listen(self, router: Router) -> bool:
        """Hear what the launcher says; False once it has ended."""
        piece = os.read(self._launcher, 4096)
        self._heard += piece
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            router.gone(msgspec.json.decode(line, type=FrontGone).name)
        return bool(piece)

    def _send(self, client: bytes, message: ToClient) -> None:
        self._socket.send_multipart([client, self._encode(message)])


def main(make_executor: MakeExecutor = executor_for) -> int:
    """Read the launch message, start the core, serve. `make_executor` stands in for ranks where none are measured."""
    die_with_parent()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    launch = _launch(sys.stdin.fileno())
    setup(launch.config.log.log_level, launch.config.log.log_format)
    write_aside()
    pulse = Pulse(launch.pulse)
    try:
        server = Server(launch, sys.stdin.fileno(), pulse)
    except EngineError as error:
        pulse.last_words(str(error))
        log.error("%s", error)
        return 2
    timeline = Timeline(process_age_s(), pulse.loads)
    try:
        with weights_progress(launch.model.name, pulse.loads) as progress:
            core = begin(launch.config, launch.model, progress, timeline, make_executor)
    except QuireError as error:
        server.fail(str(error))
        server.close()
        return 2
    keep_what_lives()
    try:
        server.run(core)
        return 0
    except Exception as error:
        log.error("%s", traceback.format_exc())
        server.fail(f"the engine failed: {type(error).__name__}")
        # Ranks that hang would be waited for once more.
        core.abandon()
        return 1
    finally:
        server.close()
        core.close()


def _launch(descriptor: int) -> Launch:
    """The launch message, and not a byte more: the rest of standard input is the launcher's life line."""
    length = int.from_bytes(_read(descriptor, LENGTH_BYTES))
    return msgspec.json.decode(_read(descriptor, length), type=Launch)


def _read(descriptor: int, count: int) -> bytes:
    read = b""
    while len(read) < count:
        piece = os.read(descriptor, min(count - len(read), 1 << 16))
        if not piece:
            raise SystemExit("quire.engine.process is started by quire, not by hand")
        read += piece
    return read


if __name__ == "__main__":
    sys.exit(main())
