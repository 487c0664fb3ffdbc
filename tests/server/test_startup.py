"""Who answers while no front end does, and whom it does not let itself be held up by."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest import mock

import pytest

from quire.config.fields import Config, ServerConfig
from quire.server.sockets import bind
from quire.server.startup import StartupResponder
from quire.server.supervisor import OURS, Supervisor
from tests.config import facts
from tests.waiting import HANG_S

pytestmark = pytest.mark.plain

FEW = 4


def attended(visit: Callable[[StartupResponder, socket.socket], Awaitable[None]], patience_s: float = HANG_S) -> None:
    """A visit to a responder that has few slots."""

    async def scenario() -> None:
        few = mock.patch.multiple("quire.server.startup", MOST_CONNECTIONS=FEW, PATIENCE_S=patience_s)
        with bind(ServerConfig(port=0)) as listener, few:
            responder = StartupResponder("", None)
            await responder.open([listener])
            try:
                await visit(responder, listener)
            finally:
                responder.close()

    asyncio.run(scenario())


async def ask(listener: socket.socket, path: bytes = b"/live") -> tuple[bytes, asyncio.StreamWriter]:
    """The first line of an answer, if there is one; the connection stays open."""
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET " + path + b" HTTP/1.1\r\n\r\n")
    try:
        return await reader.readline(), writer
    except ConnectionError:
        return b"", writer


def test_clients_that_do_not_close_keep_nobody_out() -> None:
    async def visit(responder: StartupResponder, listener: socket.socket) -> None:
        asked = [await asyncio.wait_for(ask(listener), HANG_S) for _ in range(3 * FEW)]
        assert {line for line, _ in asked} == {b"HTTP/1.1 200 OK\r\n"}
        for _, writer in asked:
            writer.close()

    attended(visit)


def test_clients_that_ask_nothing_are_few() -> None:
    async def visit(responder: StartupResponder, listener: socket.socket) -> None:
        silent = [await asyncio.open_connection(*listener.getsockname()) for _ in range(FEW)]
        line, writer = await ask(listener)
        assert not line
        for _, silent_writer in silent:
            silent_writer.close()
        while not line:
            writer.close()
            line, writer = await ask(listener, b"/v1/models")
        writer.close()
        assert line == b"HTTP/1.1 503 Service Unavailable\r\n"

    attended(visit)


def test_clients_that_ask_nothing_have_little_time() -> None:
    async def visit(responder: StartupResponder, listener: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        assert not await asyncio.wait_for(reader.read(), HANG_S)
        writer.close()

    attended(visit, patience_s=0.1)


def test_without_a_responder_nothing_is_begun_and_nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.server.supervisor.private_folder", lambda: tmp_path)
    monkeypatch.setattr(StartupResponder, "open", mock.AsyncMock(side_effect=OSError("no descriptor")))
    listener = bind(ServerConfig(port=0))
    config = Config(server=ServerConfig(port=0))

    async def scenario() -> None:
        await Supervisor(config, facts.model(), [listener], None, OURS, print).run()

    with pytest.raises(OSError, match="no descriptor"):
        asyncio.run(scenario())
    assert not tmp_path.exists() and listener.fileno() == -1


def test_where_a_front_end_serves_nobody_else_answers() -> None:
    async def visit(responder: StartupResponder, listener: socket.socket) -> None:
        with bind(ServerConfig(port=0)) as other:
            await responder.open([other, other])
            responder.leave(listener)
            line, writer = await ask(other)
            writer.close()
            assert line == b"HTTP/1.1 200 OK\r\n"
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"GET /live HTTP/1.1\r\n\r\n")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
            writer.close()

    attended(visit)
