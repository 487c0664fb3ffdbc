"""`ApiServer`: uvicorn with our settings and an end in two steps; `bind`: its socket. They know nothing of engines."""

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from quire.base.errors import ConfigError
from quire.base.logging import get_logger
from quire.config.fields import ServerConfig
from quire.server.service import Service

log = get_logger(__name__)

KEEP_ALIVE_S = 75
"""Idle connections are kept longer than load balancers keep them (60 s), or these would meet closed ones."""

BACKLOG = 2048
DRAIN_TICK_S = 0.05
GOODBYE_S = 5
"""For streams that were given up to tell their clients so."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Listening at once keeps a second server off the port while this one still loads."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose others with --host and --port (0: any free)"
        ) from error
    return listener


class ApiServer(uvicorn.Server):
    """uvicorn with our limits, a word when it is ready, and a drain before it stops.

    Args:
        on_ready: called once connections are answered and signals are heard.
    """

    def __init__(self, app: Starlette, config: ServerConfig, on_ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GOODBYE_S,
                backlog=BACKLOG,
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
            )
        )
        self._on_ready = on_ready
        self._service: Service = app.state.service
        self._timeout_s = config.shutdown_timeout_s
        self._drain: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `stop` was called and everything is over."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came; runs between any two instructions of the main thread."""
        self._loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """Drain; the second call ends all requests at once."""
        if self._drain is None:
            log.info("stopping: open requests get %g s, a second signal ends them at once", self._timeout_s)
            self._service.admission.draining = True
            self._drain = self._loop.create_task(self._drain_then_exit())
        else:
            self._give_up()

    async def _drain_then_exit(self) -> None:
        deadline = self._loop.time() + self._timeout_s
        while self._service.admission.open and not self.should_exit:
            if self._loop.time() > deadline:
                log.warning("%d sequences did not end in time and are cut", self._service.admission.open)
                self._give_up()
                return
            await asyncio.sleep(DRAIN_TICK_S)
        self.should_exit = True

    def _give_up(self) -> None:
        for watch in list(self._service.open_watches):
            watch.give_up()
        self.should_exit = True
