"""`Store`: responses that can be asked for again, in memory and within a limit of bytes; the longest unused go first.

A response belongs to the key that made it: nobody else finds it, whatever id they try. Those that still run in the
background are listed beside it; they are bounded by admission. Nothing here knows how a response looks.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from quire.messages.control import Fetch, Fetched, Nothing
from quire.messages.outputs import RequestOutput

Place = tuple[bytes, str]
"""Whose response it is (`auth.owner_of`), and its id."""

OVERHEAD_BYTES = 512
"""What an entry costs beyond its bytes."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A response that has ended.

    Attributes:
        body: its JSON.
        turns: the JSON of the conversation up to and with it, for the next request to go on from; empty if it failed.
    """

    body: bytes
    turns: bytes

    @property
    def size_bytes(self) -> int:
        """What it counts for."""
        return len(self.body) + len(self.turns) + OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class Running:
    """A response that is being made while nobody waits: its work, and its JSON as it is now."""

    task: "asyncio.Task[RequestOutput]"
    body: Callable[[], bytes]


class Store:
    """Responses that can be asked for again; the longest unused go first.

    Args:
        limit_bytes: all that may be kept together; what is larger alone is not kept.

    Attributes:
        used_bytes: kept now.
        running: responses in the background, by place.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[Place, Kept] = OrderedDict()
        self.used_bytes = 0
        self.running: dict[Place, Running] = {}

    def put(self, place: Place, kept: Kept) -> None:
        """Keep a response, in place of what was there."""
        if place in self._kept:
            self.used_bytes -= self._kept.pop(place).size_bytes
        if kept.size_bytes > self._limit:
            return
        self._kept[place] = kept
        self.used_bytes += kept.size_bytes
        while self.used_bytes > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self.used_bytes -= oldest.size_bytes

    async def fetch(self, asked: Fetch) -> Fetched | Nothing:
        """What another front end wants to know of a response."""
        place = asked.owner, asked.id
        running = self.running.get(place)
        if running is not None:
            if asked.cancel:
                running.task.cancel()
                await asyncio.wait([running.task])
            return Fetched(running.body())
        kept = self.get(place)
        return Nothing() if kept is None else Fetched(kept.body, kept.turns)

    def get(self, place: Place) -> Kept | None:
        """A response that has ended, or None; it counts as used now."""
        if place in self._kept:
            self._kept.move_to_end(place)
        return self._kept.get(place)
