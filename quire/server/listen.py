"""`ApiServer`: uvicorn with our settings and an end in two steps; `bind`: its socket. They know nothing of engines."""

import asyncio
import os
import socket
import ssl
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from quire.base.errors import ConfigError
from quire.base.logging import get_logger
from quire.config.fields import ServerConfig
from quire.server.service import Service
from quire.server.wire import Wire, connections_allowed

log = get_logger(__name__)

KEEP_ALIVE_S = 75
"""Idle connections are kept longer than load balancers keep them (60 s), or these would meet closed ones."""

BACKLOG = 2048
DRAIN_TICK_S = 0.05
GOODBYE_S = 5
"""For streams that were given up to tell their clients so."""


def bind(config: ServerConfig) -> socket.socket:
    """A listening socket. Listening at once keeps a second server off the port while this one still loads.

    Raises ConfigError if the address is taken or cannot be had.
    """
    return _bind_path(config.uds) if config.uds is not None else _bind_port(config.host, config.port)


def _bind_path(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_left_over(path)
        # The file must never be there with wider permissions, not even for a moment.
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"uds: cannot listen on {path!r}: {error.strerror or error}; choose another --uds") from error
    return listener


def _remove_left_over(path: str) -> None:
    """Remove the socket of a server that has ended. Raises OSError if one listens there, or it is something else."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise OSError("there is a file that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
    raise OSError("a server listens there")


def _bind_port(host: str, port: int) -> socket.socket:
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


def check_certificates(config: ServerConfig) -> None:
    """Raise ConfigError unless certificate, key and authorities can be read and belong together."""
    if config.ssl_certfile is None:
        if config.ssl_keyfile is not None or config.ssl_ca_certs is not None:
            raise ConfigError("ssl_certfile: it is missing; ssl_keyfile and ssl_ca_certs are of no use without it")
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
    except OSError as error:
        raise ConfigError(f"ssl_certfile, ssl_keyfile: cannot be read as a certificate and its key: {error}") from error
    try:
        if config.ssl_ca_certs is not None:
            context.load_verify_locations(config.ssl_ca_certs)
    except OSError as error:
        raise ConfigError(f"ssl_ca_certs: cannot be read as certificates: {error}") from error


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
                http=partial(Wire, most=connections_allowed()),  # type: ignore[arg-type]
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
