"""`StartupResponder`: answers clients while the first engine loads and no front end does.

`/live` gets 200, for the supervisor lives; all else gets 503 with Retry-After. Owned by the supervisor, which it must
not harm: a connection gets one answer, little memory and little time, and there are few at a time.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator

import msgspec

from quire.server.sockets import BACKLOG

RETRY_AFTER_S = 5
MOST_CONNECTIONS = 128
"""That are answered at a time; and so many more that have their answer."""
AT_ONCE = 32
"""So many are accepted before those that were are looked at."""
MOST_HEAD_BYTES = 16 << 10
PATIENCE_S = 5.0
"""From the first byte, of TLS where that is asked for, to the answer."""
LINGER_S = 0.5
"""For a client to close, once it has its answer."""

_LOADING = {
    "message": "Not ready: the engine is loading.",
    "type": "overloaded_error",
    "param": None,
    "code": "not_ready",
}


class StartupResponder:
    """Answers clients while the first engine loads and no front end does.

    Args:
        root: path that a proxy in front may have put before ours.
        tls: None where connections are plain.
    """

    def __init__(self, root: str, tls: ssl.SSLContext | None) -> None:
        self._root = root.rstrip("/")
        self._tls = tls
        self._servers: dict[int, asyncio.Server] = {}
        self._answering, self._parting = ConnectionSlots(PATIENCE_S), ConnectionSlots(LINGER_S)

    async def open(self, listeners: list[socket.socket]) -> None:
        """Begin to answer; the sockets remain their owner's."""
        for number, listener in {each.fileno(): each for each in listeners}.items():
            self._servers[number] = await asyncio.start_server(
                self._attend, sock=listener.dup(), limit=MOST_HEAD_BYTES, backlog=AT_ONCE
            )
            # The queue is the listener's own, and was made shorter.
            listener.listen(BACKLOG)

    def leave(self, listener: socket.socket) -> None:
        """Take no further connection from there: a front end does."""
        server = self._servers.pop(listener.fileno(), None)
        if server is not None:
            server.close()

    def close(self) -> None:
        """Take no further connection."""
        while self._servers:
            self._servers.popitem()[1].close()

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._answering.place():
                await self._answer(reader, writer)
            # Whoever has an answer keeps nobody out.
            async with self._parting.place():
                await _part(reader, writer)
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # Only the end of the event loop cancels, and nobody waits for this.
        finally:
            writer.close()
            # TLS would wait for the client's goodbye.
            asyncio.get_running_loop().call_later(LINGER_S, writer.transport.abort)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._tls is not None:
            # Only now, so that connections which never shake hands count as well.
            await writer.start_tls(self._tls)
        writer.write(self._said(await reader.readuntil(b"\r\n\r\n")))
        await writer.drain()

    def _said(self, head: bytes) -> bytes:
        """The answer to a request."""
        target = head.split(b"\r\n", 1)[0].split(b" ")[1:2]
        path = b"".join(target).partition(b"?")[0].decode("latin-1").removeprefix(self._root)
        if path == "/live":
            return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        body = msgspec.json.encode({"error": _LOADING})
        lines = (
            "HTTP/1.1 503 Service Unavailable",
            f"Retry-After: {RETRY_AFTER_S}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class ConnectionSlots:
    """Places for connections, each for some seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._taken = 0

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold one meanwhile. Raises OSError where all are taken, or when time is up."""
        if self._taken == MOST_CONNECTIONS:
            raise OSError("too many connections")
        self._taken += 1
        try:
            async with asyncio.timeout(self._seconds):
                yield
        finally:
            self._taken -= 1


async def _part(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait for the client to close: a connection that is closed with something unread takes the answer with it."""
    if writer.can_write_eof():
        writer.write_eof()
    while await reader.read(MOST_HEAD_BYTES):
        pass
