"""`BoundedProtocol`: uvicorn's HTTP/1.1 protocol with the limits that it lacks.

Without them a client could hold memory and connections for ever by sending headers that never end, by reading nothing,
or by opening connections without number. Known to `ApiServer` only; it sees bytes and no application.
"""

import asyncio
import resource
import uuid
from collections import Counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quire.server.errors import ApiError, unavailable
from quire.server.sockets import SPARE_DESCRIPTORS, is_own

HEAD_TIMEOUT_S = 10.0
"""From the first byte of a request to the end of its headers."""

MAX_HEAD_BYTES = 128 << 10
"""Of URL and headers on the wire; `middleware` has closer limits for what gets that far."""

MAX_CONNECTIONS = 10_000


def connections_allowed() -> int:
    """How many clients this process can hold; takes as many descriptors for them as the system gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, soft - SPARE_DESCRIPTORS)


class BoundedProtocol(HttpToolsProtocol):
    """One connection of a client.

    Args:
        most: connections at a time; one more is turned away. Another machine may have half of them.
        addresses: connections by address, the same object for all.
        write_timeout_s: a client that has taken nothing for so long, while there is something to take, has gone.
        given: what uvicorn hands over.
    """

    def __init__(self, *, most: int, addresses: Counter[str], write_timeout_s: float, **given: Any) -> None:
        super().__init__(**given)
        self._most = most
        self._addresses = addresses
        self._address = ""
        self._write_timeout_s = write_timeout_s
        self._reads_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected; one too many is told so."""
        super().connection_made(transport)
        if self.client is not None and not is_own(self.client[0]):
            self._address = self.client[0]
            self._addresses[self._address] += 1
        if len(self.connections) > self._most or self._addresses[self._address] > self._most // 2:
            self._refuse(unavailable("Too many connections are open; try again later.", "too_many_connections"))
            return
        # Until its first byte a connection is idle.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop(self._head_timer)
        self._stop(self._write_timer)
        if self._address:
            self._addresses[self._address] -= 1
            if not self._addresses[self._address]:
                del self._addresses[self._address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come; headers only up to their limit."""
        if self._reads_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self._answers():
                self._refuse(self._too_large())
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._reads_head = True
        self._head_bytes = 0
        self._stop(self._head_timer)
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)

    def on_headers_complete(self) -> None:
        """Its headers have come."""
        self._reads_head = False
        self._stop(self._head_timer)
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        super().pause_writing()
        self._stop(self._write_timer)
        self._write_timer = self.loop.call_later(self._write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        self._stop(self._write_timer)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What has come is no HTTP."""
        self._refuse(ApiError(400, "This is no valid HTTP/1.1 request.", "invalid_http"))

    def _too_large(self) -> ApiError:
        if not self.headers and len(self.url) > MAX_HEAD_BYTES // 2:
            return ApiError(414, "The URL is too long.", "uri_too_long")
        return ApiError(431, "The headers are too large.", "headers_too_large")

    def _head_is_late(self) -> None:
        if self._answers():
            # The answer to the request before comes first; a second one is not worth cutting it.
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)
            return
        self._refuse(ApiError(408, f"The headers did not arrive within {HEAD_TIMEOUT_S:g} s.", "header_timeout"))

    def _answers(self) -> bool:
        """Whether an answer is under way on this connection."""
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, and close."""
        if self.transport.is_closing():
            return
        headers = {
            "content-type": "application/json",
            "content-length": str(len(error.body)),
            "connection": "close",
            "x-request-id": f"req_{uuid.uuid4().hex}",
            **error.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(f"HTTP/1.1 {error.status} Refused\r\n{lines}\r\n".encode() + error.body)
        self.transport.close()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
