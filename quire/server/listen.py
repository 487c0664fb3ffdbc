"""`ApiServer`: uvicorn with our settings and an end in two steps. It knows nothing of engines."""

import asyncio
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from quire.base.logging import get_logger
from quire.config.fields import ServerConfig
from quire.server.protocol import BoundedProtocol, connections_allowed
from quire.server.service import Service
from quire.server.sockets import BACKLOG

log = get_logger(__name__)

SWITCH_S = 0.001
"""After so long, threads that compare vectors and write long answers give way to the event loop."""

KEEP_ALIVE_S = 75
"""Idle connections are kept longer than load balancers keep them (60 s), or these would meet closed ones."""

DRAIN_TICK_S = 0.05
GOODBYE_S = 5
"""For streams that were given up to tell their clients so."""


class ApiServer(uvicorn.Server):
    """uvicorn with our limits, a word when it is ready, and a drain before it stops.

    Args:
        on_ready: called once connections are answered and signals are heard.
        on_stop: called when the drain begins.
    """

    def __init__(
        self,
        app: Starlette,
        config: ServerConfig,
        on_ready: Callable[[], None] = lambda: None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(  # type: ignore[arg-type]
                    BoundedProtocol,
                    most=connections_allowed(),
                    addresses=Counter(),
                    write_timeout_s=config.stream_write_timeout_s,
                ),
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
                ssl_certfile=config.ssl_certfile,
                ssl_keyfile=config.ssl_keyfile,
                ssl_ca_certs=config.ssl_ca_certs,
                ssl_cert_reqs=ssl.CERT_NONE if config.ssl_ca_certs is None else ssl.CERT_REQUIRED,
            )
        )
        self._on_ready = on_ready
        self._on_stop = on_stop
        self._service: Service = app.state.service
        self._timeout_s = config.shutdown_timeout_s
        self._drain: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `stop` was called and everything is over."""
        self._loop = asyncio.get_running_loop()
        sys.setswitchinterval(SWITCH_S)
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
            self._on_stop()
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
