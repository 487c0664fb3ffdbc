"""`Line`: one HTTP/1.1 connection that streams answers, and notes when each piece of text came.

It speaks to any server with OpenAI's API. Made for many streams in one process: a protocol object and C parsers, no
task and no timer per piece. Knows nothing of traffic.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from typing import Any, cast

import httptools
import msgspec

from quire.cli.address import Address

OK = 200


class Delta(msgspec.Struct):
    """What a chunk of a chat adds."""

    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class Choice(msgspec.Struct):
    """One choice of a chunk or of a whole answer, of a completion or of a chat."""

    text: str | None = None
    delta: Delta = msgspec.field(default_factory=Delta)
    finish_reason: str | None = None


class Details(msgspec.Struct):
    """Of a prompt's tokens."""

    cached_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None


class Chunk(msgspec.Struct):
    """An event of a stream."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(Chunk).decode


@dataclass(slots=True)
class Sample:
    """How one request went.

    Attributes:
        due: when it should have been sent, seconds of `time.perf_counter`; latencies count from here.
        stamps: when each event with text came.
        error: why the request failed, or None.
        ended: when the answer was complete.
        session, turn: which of the sessions asked for it was, and which of its turns, from 0.
    """

    due: float
    stamps: list[float] = field(default_factory=list)
    error: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    ended: float = 0.0
    finish_reason: str | None = None
    text: str = ""
    session: int = 0
    turn: int = 0


class Line(asyncio.Protocol):
    """One connection, one request at a time.

    Args:
        keep_text: collect the texts of answers; counting alone is cheaper.
    """

    def __init__(self, keep_text: bool = False) -> None:
        self._keep_text = keep_text
        self._transport: asyncio.Transport | None = None
        self._sample: Sample | None = None
        self._done: asyncio.Future[None] | None = None
        self._lost: str | None = None

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes, sample: Sample) -> None:
        """Send `request` (headers and body) and fill `sample` until the answer has ended. A failure is in `sample`."""
        if self._transport is None or self._lost is not None:
            sample.error = self._lost or "not connected"
            return
        done = asyncio.get_running_loop().create_future()
        self.expect(sample, done)
        self._transport.write(request)
        try:
            await done
        finally:
            self._sample = None
            sample.text = self.text

    def expect(self, sample: Sample, done: "asyncio.Future[None] | None") -> None:
        """An answer that comes now is for `sample`; `done` is told when it has ended."""
        self._sample = sample
        self._done = done
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """Of the answer so far."""
        return "".join(self._texts)

    def close(self) -> None:
        """Hang up; a running request ends on the server."""
        if self._transport is not None:
            self._transport.close()

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._sample is None:
            return
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        """The connection has gone."""
        self._lost = "the connection was closed" if error is None else type(error).__name__
        self._end(self._lost)

    # Called by the parser.

    def on_headers_complete(self) -> None:
        """The status is known."""
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """A piece of the body has come."""
        if self._status != OK:
            self._rest += body[:1024]
            return
        *events, self._rest = (self._rest + body).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: {"):
                self._read(_decode(event[6:]))

    def on_message_complete(self) -> None:
        """The answer has ended."""
        if self._status == OK and self._rest.startswith(b"{"):
            self._now = time.perf_counter()
            self._read(_decode(self._rest))
        said = self._rest[:200].decode("utf-8", "replace")
        self._end(None if self._status == OK else f"status {self._status}: {said}")

    def _read(self, chunk: Chunk) -> None:
        sample = self._sample
        assert sample is not None
        for choice in chunk.choices:
            text = choice.text or choice.delta.content or choice.delta.reasoning
            if text or choice.delta.tool_calls:
                sample.stamps.append(self._now)
            if text and self._keep_text:
                self._texts.append(text)
            sample.finish_reason = choice.finish_reason or sample.finish_reason
        if chunk.usage is not None:
            sample.prompt_tokens = chunk.usage.prompt_tokens
            sample.output_tokens = chunk.usage.completion_tokens
            details = chunk.usage.prompt_tokens_details
            sample.cached_tokens = details.cached_tokens if details is not None else 0
        if chunk.error is not None:
            sample.error = f"error event: {str(chunk.error)[:200]}"

    def _end(self, error: str | None) -> None:
        if self._sample is None:
            return
        self._sample.error = self._sample.error or error
        self._sample.ended = time.perf_counter()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


class Client:
    """Connections to one server, opened as they are needed and used again.

    Args:
        address: of the server.
        key: sent as a bearer token, or None.
        keep_text: collect the texts of answers.
    """

    def __init__(self, address: Address, key: str | None, keep_text: bool = False) -> None:
        self._address = address
        self._key = key
        self._keep_text = keep_text
        self._idle: list[Line] = []

    async def stream(self, path: str, body: dict[str, object], sample: Sample) -> None:
        """Post `body` to `path` and fill `sample`. A request that fails says so in `sample.error`."""
        request = self._request("POST", path, msgspec.json.encode(body))
        try:
            line = await self._line()
        except OSError as error:
            sample.error, sample.ended = f"cannot connect: {error}", time.perf_counter()
            return
        try:
            await line.ask(request, sample)
        except asyncio.CancelledError:
            line.close()
            raise
        if line.usable and sample.error is None:
            self._idle.append(line)
        else:
            line.close()

    def close(self) -> None:
        """Close what is idle."""
        for line in self._idle:
            line.close()

    async def _line(self) -> Line:
        while self._idle:
            line = self._idle.pop()
            if line.usable:
                return line
        loop = asyncio.get_running_loop()
        context = ssl.create_default_context() if self._address.secure else None
        _, line = await loop.create_connection(
            lambda: Line(self._keep_text), self._address.host, self._address.port, ssl=context
        )
        return line

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        key = "" if self._key is None else f"Authorization: Bearer {self._key}\r\n"
        head = (
            f"{method} {self._address.path}{path} HTTP/1.1\r\nHost: {self._address}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body
