"""`Porter`: answers clients while the first engine loads and no front end does.

`/live` gets 200, for the supervisor lives; all else gets 503 with Retry-After. Owned by the supervisor, which it must
not harm: a connection gets one answer, little memory and little time, and there are few at a time.
"""

import asyncio
import socket
import ssl

import msgspec

from quire.server.sockets import BACKLOG

RETRY_AFTER_S = 5
MOST_CONNECTIONS = 128
MOST_HEAD_BYTES = 16 << 10
PATIENCE_S = 5.0
"""For a whole connection."""

_LOADING = {
    "message": "Not ready: the engine is loading.",
    "type": "overloaded_error",
    "param": None,
    "code": "not_ready",
}


class Porter:
    """See the module.

    Args:
        root: path that a proxy in front may have put before ours.
        tls: None where connections are plain.
    """

    def __init__(self, root: str, tls: ssl.SSLContext | None) -> None:
        self._root = root.rstrip("/")
        self._tls = tls
        self._servers: list[asyncio.Server] = []
        self._open = 0

    async def open(self, listeners: list[socket.socket]) -> None:
        """Begin to answer; the sockets remain their owner's."""
        for listener in {each.fileno(): each for each in listeners}.values():
            server = await asyncio.start_server(
                self._answer, sock=listener.dup(), ssl=self._tls, limit=MOST_HEAD_BYTES, backlog=BACKLOG
            )
            self._servers.append(server)

    def close(self) -> None:
        """Take no further connection; from now on front ends do."""
        for server in self._servers:
            server.close()
        self._servers = []

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MOST_CONNECTIONS:
                async with asyncio.timeout(PATIENCE_S):
                    writer.write(self._said(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
                    if writer.can_write_eof():
                        writer.write_eof()
                    # A connection that is closed with something unread takes the answer with it.
                    while await reader.read(MOST_HEAD_BYTES):
                        pass
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open -= 1
            writer.close()

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
