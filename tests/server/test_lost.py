"""A front end that cannot understand its core is of no use any more: it says so, and ends."""

import asyncio
import socket
from unittest import mock

import pytest

from quire.base.errors import EngineDeadError, TransportError
from quire.engine.async_llm import AsyncLLM
from quire.messages.params import SamplingParams
from quire.messages.request import Request
from quire.server import front as module

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
        engine._open._processor = mock.Mock()
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
        config = mock.Mock(server=mock.Mock(chat_template=None))
        born = mock.Mock(config=config, listener=socket.socket().detach(), facts=None)
        with mock.patch.multiple(module, FrontEnd=mock.DEFAULT, AsyncLLM=mock.DEFAULT, Pulse=mock.DEFAULT) as made:
            front = module.Front(mock.Mock(), born)
        engine = made["AsyncLLM"].return_value
        engine.close = mock.AsyncMock()
        front._hear = front._serve = front._live = asyncio.Event().wait
        running = asyncio.create_task(front.run())
        with front._listener:
            done, _ = await asyncio.wait([running], timeout=0.05)
            assert not done
            engine.on_lost()
            await asyncio.wait_for(running, 10 * module.LAST_WORDS_S)
        assert engine.close.await_count == 1

    asyncio.run(play())
