"""`Watch`: ends a request's work when its client hangs up or the server cannot wait any longer."""

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive

from quire.server.errors import unavailable


class ClientGoneError(Exception):
    """The client has closed the connection: there is nobody to answer."""


class Watch:
    """Cancels the task inside its `async with` block and turns that into a proper error.

    Leaving the block raises ClientGoneError if the client hung up, ApiError 503 if the server gave up on it.

    Args:
        receive: of the request; its body must have been read.
        open: where the watch is listed while it is active, so that a stopping server can find it.
    """

    def __init__(self, receive: Receive, open: "set[Watch]") -> None:
        self._receive = receive
        self._open = open
        self._why: Exception | None = None

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "an ASGI application runs in a task"
        self._task = task
        self._listener = asyncio.create_task(self._listen())
        self._open.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.discard(self)
        self._listener.cancel()
        task, why = self._task, self._why
        # All of these know the watch in turn. Let go, a request's objects end with it; else they would lie about until
        # the collector of cycles looks, and those that it has met too early for long after that.
        del self._task, self._listener, self._why
        if why is not None and isinstance(error, asyncio.CancelledError):
            task.uncancel()
            try:
                raise why from None
            finally:
                del why

    def give_up(self) -> None:
        """End the request because the server stops."""
        self._cancel(unavailable("The server is shutting down.", "shutting_down", 10))

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cancel(ClientGoneError())

    def _cancel(self, why: Exception) -> None:
        if self._why is None:
            self._why = why
            self._task.cancel()
