"""A front end that cannot understand its core is of no use any more: it says so, and ends."""

import asyncio
from unittest import mock

import pytest

from quire.base.errors import EngineDeadError, TransportError
from quire.engine.async_llm import AsyncLLM
from quire.messages.params import SamplingParams
from quire.messages.request import Request
from quire.server.front import LAST_WORDS_S, Front

pytestmark = pytest.mark.plain


class Garbled:
    """A connection whose next message is none."""

    def __init__(self) -> None:
        self.spoils = asyncio.Event()

    def send(self, message: object) -> None:
        """Nobody hears it."""

    async def receive(self) -> object:
        """Never a message."""
        await self.spoils.wait()
        raise TransportError("no message of this version")

    def close(self) -> None:
        """Nothing to drop."""


def test_what_is_lost_ends_requests_and_is_told() -> None:
    async def play() -> None:
        lost, connection = asyncio.Event(), Garbled()
        front = mock.Mock(new_id=lambda: "r")
        params = SamplingParams()
        front.prepare.return_value = Request(id="r", token_ids=[1], params=params), None
        engine = AsyncLLM(front)
        engine._processor = mock.Mock()
        engine.on_lost = lost.set
        engine._joined(connection, mock.Mock())
        reading = asyncio.create_task(anext(engine.generate([1], params)))
        await asyncio.sleep(0)
        connection.spoils.set()
        with pytest.raises(EngineDeadError, match="cannot be understood"):
            await reading
        assert lost.is_set() and engine.dead is not None

    asyncio.run(play())


def test_its_front_end_ends() -> None:
    async def play() -> None:
        front = object.__new__(Front)
        front._lost = asyncio.Event()
        ending = asyncio.create_task(front._end_lost())
        done, _ = await asyncio.wait([ending], timeout=0.05)
        assert not done
        front._lost.set()
        await asyncio.wait_for(ending, 10 * LAST_WORDS_S)

    asyncio.run(play())
