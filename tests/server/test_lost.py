"""A front end that cannot understand its core is of no use any more: it says so, and ends."""

import asyncio
import socket
from typing import Any
from unittest import mock

import pytest

from quire.base.errors import EngineDeadError, TransportError
from quire.engine.async_llm import AsyncLLM
from quire.engine.connector import EngineConnector
from quire.messages.control import Answered, Asked, Count, EngineUp, Nothing
from quire.messages.params import SamplingParams
from quire.messages.request import Request
from quire.messages.wire import EngineFacts
from quire.server import front as module
from tests.waiting import HANG_S

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


def new_front() -> tuple[Any, mock.Mock]:
    """A front end whose engine is a mock, and its channel to the supervisor."""
    config, channel = mock.Mock(server=mock.Mock(chat_template=None)), mock.Mock()
    born = mock.Mock(config=config, listener=socket.socket().detach(), facts=None)
    with mock.patch.multiple(module, FrontEnd=mock.DEFAULT, AsyncLLM=mock.DEFAULT, Pulse=mock.DEFAULT):
        return module.Front(channel, born), channel


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


def test_an_engine_that_cannot_be_joined_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        lost, joined, connection = asyncio.Event(), mock.Mock(), Garbled()
        engine = AsyncLLM(mock.Mock(), connect=lambda address: connection)
        engine.on_lost = lost.set
        await EngineConnector(engine, joined).hear(EngineUp("ipc:///there"))
        connection.spoils.set()
        await asyncio.wait_for(lost.wait(), HANG_S)
        joined.assert_not_called()

    asyncio.run(play())
    assert "cannot be joined" in caplog.text and "no message of this version" in caplog.text


def test_an_engine_that_cannot_be_asked_again_is_not_joined() -> None:
    async def play() -> None:
        lost, joined, connection = asyncio.Event(), mock.Mock(), mock.Mock()
        connection.receive = mock.AsyncMock(side_effect=[mock.Mock(spec=EngineFacts), TransportError("no more")])
        engine = AsyncLLM(mock.Mock(), connect=lambda address: connection)
        engine.on_lost = lost.set
        with mock.patch.object(engine._open, "ask_again", side_effect=ValueError):
            await EngineConnector(engine, joined).hear(EngineUp("ipc:///there"))
            await asyncio.wait_for(lost.wait(), HANG_S)
            await asyncio.sleep(0)
        joined.assert_not_called()
        assert engine.dead is not None

    asyncio.run(play())


def test_a_question_that_fails_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        front, channel = new_front()
        front._service = mock.Mock(**{"counted.side_effect": KeyError("no such count")})
        channel.receive = mock.AsyncMock(side_effect=[Asked(7, Count()), None])
        answered = asyncio.Event()
        channel.send.side_effect = lambda message: answered.set()
        with front._listener:
            await front._hear()
            await asyncio.wait_for(answered.wait(), HANG_S)
        channel.send.assert_called_once_with(Answered(7, Nothing()))

    asyncio.run(play())
    assert "no such count" in caplog.text


def test_its_front_end_ends() -> None:
    async def play() -> None:
        front, _ = new_front()
        engine = front._engine
        engine.close = mock.AsyncMock()
        front._hear = front._serve = front._live = asyncio.Event().wait
        running = asyncio.create_task(front.run())
        with front._listener:
            done, _ = await asyncio.wait([running], timeout=0.05)
            assert not done
            engine.on_lost()
            await asyncio.wait_for(running, HANG_S)
        assert engine.close.await_count == 1

    asyncio.run(play())
