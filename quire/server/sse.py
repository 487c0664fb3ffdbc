"""Server-sent events: the answer of a streamed request, its comments while nothing comes, its errors, its end.

data: {json}\n\n  ...  data: [DONE]\n\n        : keep-alive\n\n

OpenAI's newer endpoints and Anthropic's name their events (`named_event`), tell errors in events of their own and send
no [DONE]: they pass an `Ending`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from quire.base.logging import get_logger
from quire.server.errors import ApiError, as_api_error
from quire.server.watch import ClientGoneError, Watch

log = get_logger(__name__)

KEEP_ALIVE_S = 15.0
DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(json: bytes) -> bytes:
    """One event."""
    return b"data: " + json + b"\n\n"


def named_event(kind: str, fields: dict[str, object]) -> bytes:
    """An event that carries its type twice, as a line `event:` and as the field `type`."""
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode({"type": kind, **fields}) + b"\n\n"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stream tells that it failed, and what comes at the very end."""

    failed: Callable[[ApiError], bytes]
    done: bytes = b""


OPENAI_ENDING = Ending(lambda error: event(error.body), DONE)


class Frame:
    """A rendered event with a hole for its text, as nearly all events of a stream differ in nothing else.

    Args:
        rendered: the event with MARK as its text.
    """

    MARK = "\x00"

    def __init__(self, rendered: bytes) -> None:
        self._before, _, self._after = rendered.rpartition(msgspec.json.encode(self.MARK))

    def around(self, text: str) -> bytes:
        """The event with `text`."""
        return self._before + msgspec.json.encode(text) + self._after


class EventStream(Response):
    """Sends events as they come, then [DONE].

    A failure after the first byte is an event with an error object, followed by [DONE] so that simple clients stop
    waiting. Nothing follows when the client has gone. Another `ending` says both in another way.

    Args:
        events: rendered events; closed when the stream ends in any way.
        open_watches: see `Watch`.
        ending: of the dialect.
    """

    def __init__(
        self, events: AsyncGenerator[bytes, None], open_watches: set[Watch], ending: Ending = OPENAI_ENDING
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._open_watches = open_watches
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole stream. Raises ClientGoneError if the client did not wait for it."""
        line = Line(send)
        async with aclosing(self._events):
            try:
                async with Watch(receive, self._open_watches):
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    line.keep_alive()
                    async for rendered in self._events:
                        await line.write(rendered)
            except ClientGoneError:
                raise
            except Exception as error:
                answer = as_api_error(error)
                if answer.code == "internal_error":
                    log.error("a stream failed", exc_info=error)
                await line.write(self._ending.failed(answer))
            finally:
                line.close()
            await send(_body(self._ending.done, more=False))


class Line:
    """The way to the client; writes a comment when nothing else was written for a while."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._written = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the client does not read."""
        self._written = self._loop.time()
        await self._send(_body(data, more=True))

    def keep_alive(self) -> None:
        """Look every KEEP_ALIVE_S whether a comment is due, until `close`."""
        if self._loop.time() - self._written >= KEEP_ALIVE_S and (self._comment is None or self._comment.done()):
            self._comment = self._loop.create_task(self.write(COMMENT))
        self._timer = self._loop.call_later(KEEP_ALIVE_S, self.keep_alive)

    def close(self) -> None:
        """No more comments."""
        if self._timer is not None:
            self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()


def _body(data: bytes, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
