"""`Peers`: the other front ends of the server, as one of them sees them. A front end that is alone has none.

What endpoints answer for the whole server goes through here: counters, open sequences, responses that another keeps.
"""

import asyncio
import itertools
from typing import Protocol

from quire.messages.control import Answers, Ask, Count, Counted, Fetch, Fetched, FromFront, Nothing, Question, Reply
from quire.server.errors import unavailable

PATIENCE_S = 30.0
"""Longer than the supervisor waits for the others, also where somebody else has its processor for seconds."""


class Peers(Protocol):
    """The other front ends."""

    @property
    def count(self) -> int:
        """All front ends of the server, this one included."""

    async def counted(self, own: Counted) -> list[Counted]:
        """What the others count beside `own`, the supervisor and the dead included."""

    async def fetch(self, owner: bytes, id: str, cancel: bool = False) -> Fetched | None:
        """A response that another front end keeps; with `cancel`, once it has ended."""


class NoPeers:
    """No other front ends, and nobody who knew any."""

    count = 1

    async def counted(self, own: Counted) -> list[Counted]:
        """Nothing."""
        return []

    async def fetch(self, owner: bytes, id: str, cancel: bool = False) -> Fetched | None:
        """None."""
        return None


class SupervisorChannel(Protocol):
    """Whatever takes messages for the supervisor."""

    def send(self, message: FromFront) -> None:
        """Send without waiting."""


class SupervisedPeers:
    """Asks the others through the supervisor.

    Args:
        channel: to the supervisor.
        count: of front ends.
    """

    def __init__(self, channel: SupervisorChannel, count: int) -> None:
        self._channel = channel
        self.count = count
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[list[Reply]]] = {}

    async def counted(self, own: Counted) -> list[Counted]:
        """See `Peers`. Raises ApiError 503 if the supervisor does not answer."""
        return [reply for reply in await self._ask(Count(), own) if isinstance(reply, Counted)]

    async def fetch(self, owner: bytes, id: str, cancel: bool = False) -> Fetched | None:
        """See `Peers`. Raises ApiError 503 if the supervisor does not answer."""
        if self.count == 1:
            return None
        replies = await self._ask(Fetch(owner, id, cancel), Nothing())
        return next((reply for reply in replies if isinstance(reply, Fetched)), None)

    def hear(self, answers: Answers) -> None:
        """The supervisor has collected answers."""
        waiting = self._asked.get(answers.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answers.replies)

    async def _ask(self, question: Question, own: Reply) -> list[Reply]:
        number = next(self._numbers)
        waiting = self._asked[number] = asyncio.get_running_loop().create_future()
        self._channel.send(Ask(number, question, own))
        try:
            return await asyncio.wait_for(waiting, PATIENCE_S)
        except TimeoutError:
            # Sums without the others would be too small: counters never fall.
            raise unavailable("The supervisor does not answer; try again later.", "not_ready") from None
        finally:
            del self._asked[number]
