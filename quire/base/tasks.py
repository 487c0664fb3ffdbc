"""`Tasks`: what is under way in an event loop while nobody waits for it. The loop itself holds its tasks weakly."""

import asyncio
from typing import Any, TypeVar

F = TypeVar("F", bound="asyncio.Future[Any]")


class Tasks:
    """Tasks and futures, held until they end."""

    def __init__(self) -> None:
        self._open: set[asyncio.Future[Any]] = set()

    def keep(self, future: F) -> F:
        """Hold `future`; it is given back."""
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    async def cancel(self) -> None:
        """End all that are open."""
        for future in self._open:
            future.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
