"""A front end as a process: `python -m quire.server.front FD`, started by `server/fronts.py`.

It answers HTTP on a socket that it has inherited, by whichever engine core the supervisor has going. It ends when the
supervisor does, whatever it is doing: a thread of its own waits for the end of standard input.
"""

import asyncio
import contextlib
import faulthandler
import os
import shutil
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path

from quire.base.collector import keep_what_lives
from quire.base.errors import ConfigError, QuireError
from quire.base.event_loop import loop_factory
from quire.base.lifeline import die_with_parent
from quire.base.logging import get_logger, setup, write_aside
from quire.base.tasks import Tasks
from quire.chat.template import ChatTemplate
from quire.config.fields import ServerConfig
from quire.engine.async_llm import AsyncLLM
from quire.engine.client import CoreClient
from quire.engine.connector import EngineConnector
from quire.engine.front import FrontEnd
from quire.engine.pulse import Pulse
from quire.messages.control import (
    Alive,
    Answered,
    Answers,
    Asked,
    CannotServe,
    Count,
    CrashReport,
    EngineDown,
    EngineUp,
    FrontEndInit,
    Nothing,
    Question,
    Reply,
    Serving,
    Stop,
    ToFront,
)
from quire.messages.text import Setup
from quire.server.app import create_app
from quire.server.channel import Channel
from quire.server.greeting import greeting
from quire.server.listen import ApiServer
from quire.server.peers import SupervisedPeers
from quire.server.service import Service
from quire.server.text.pool import TextPool

log = get_logger(__name__)

JOIN_S = 2.0
"""How long a front end that replaces another one may take to join the engine before it answers."""
ALIVE_S = 0.25
"""How often a front end says that its event loop goes round."""
LAST_WORDS_S = 0.5
"""How long open streams get to say that they have failed, where the front end must end."""


class Front:
    """One front end.

    Args:
        channel: to the supervisor.
        born: what it has said first.
    """

    def __init__(self, channel: Channel[ToFront], born: FrontEndInit) -> None:
        self._channel = channel
        self._config = born.config.server
        self._listener = socket.socket(fileno=born.listener)
        connect = partial(CoreClient, name=born.name, secret=born.secret)
        front = FrontEnd(born.config.engine, born.model)
        self._engine = AsyncLLM(front, born.facts, Pulse(born.pulse), connect)
        source = _template_source(self._config)
        self._template = front.chat_template if source is None else ChatTemplate(source, front.tokenizer)
        source = None if self._template is None else self._template.source
        said = born.config.engine.log
        self._pool = TextPool(Setup(front.tokenizer_path, source, said.log_level, said.log_format))
        self._engine.on_death = lambda reason: log.error("requests are refused until there is an engine: %s", reason)
        self._peers = SupervisedPeers(channel, born.count)
        self._answering = Tasks()
        self._known, self._lost = asyncio.Event(), asyncio.Event()
        self._engine.on_lost = self._lost.set
        # Where an engine was ready before, this front end replaces one: clients wait for it, so it answers them in any
        # case, if only to say that there is no engine now.
        self._wait_s = None if born.facts is None else JOIN_S
        self._connector = EngineConnector(self._engine, self._known.set)
        self._server: ApiServer | None = None
        self._service: Service | None = None

    async def run(self) -> None:
        """Serve until the supervisor says that it is over."""
        tasks = [asyncio.create_task(work()) for work in (self._hear, self._serve, self._live, self._end_lost)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._engine.on_death = lambda reason: None
        await self._engine.close()

    async def _serve(self) -> None:
        async with self._pool:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._known.wait(), self._wait_s)
            await self._answer_clients()

    async def _answer_clients(self) -> None:
        engine = self._engine
        app = create_app(engine, self._config, self._template, self._peers, self._pool.run)
        self._service = service = app.state.service

        def on_ready() -> None:
            self._channel.send(Serving(greeting(service, self._listener), engine.facts))

        self._server = ApiServer(app, self._config, on_ready)
        keep_what_lives()
        await self._server.serve([self._listener])
        service.tracer.close()

    async def _end_lost(self) -> None:
        """End where nothing of the core is understood any more; the supervisor begins another one."""
        await self._lost.wait()
        await asyncio.sleep(LAST_WORDS_S)
        log.error("this front end ends: it has lost what the engine said")

    async def _live(self) -> None:
        """Say that the event loop goes round."""
        while True:
            self._channel.send(Alive())
            await asyncio.sleep(ALIVE_S)

    async def _hear(self) -> None:
        while (message := await self._channel.receive()) is not None:
            if isinstance(message, EngineUp | EngineDown | CrashReport):
                for report in await self._connector.hear(message):
                    self._channel.send(report)
            elif isinstance(message, Asked):
                # In a task: what is asked may take a while.
                self._answering.keep(asyncio.create_task(self._answer(message)))
            elif isinstance(message, Answers):
                self._peers.hear(message)
            elif isinstance(message, Stop):
                if self._server is None:
                    return
                self._server.stop()

    async def _answer(self, asked: Asked) -> None:
        try:
            reply = await self._reply(asked.question)
        except Exception:
            log.exception("what another front end has asked finds no answer")
            reply = Nothing()
        self._channel.send(Answered(asked.number, reply))

    async def _reply(self, question: Question) -> Reply:
        service = self._service
        assert service is not None, "only those that serve are asked"
        return service.counted() if isinstance(question, Count) else await service.responses.fetch(question)


def _template_source(config: ServerConfig) -> str | None:
    if config.chat_template is None:
        return None
    try:
        return Path(config.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template: cannot read {config.chat_template!r}: {error}") from error


def _end_with_supervisor(folders: list[str]) -> None:
    """Wait for the end of standard input, then end this process, from a thread that nothing else can hold up."""
    while os.read(0, 4096):
        pass
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


async def _main(descriptor: int, folders: list[str]) -> int:
    channel: Channel[ToFront] = await Channel.open(socket.socket(fileno=descriptor), ToFront)
    born = await channel.receive()
    if not isinstance(born, FrontEndInit):
        return 1
    for given in (descriptor, born.listener, born.pulse):
        # uvloop closes for children only what is not inherited: a text worker would hold the port open.
        os.set_inheritable(given, False)
    folders.append(born.folder)
    setup(born.config.engine.log.log_level, born.config.engine.log.log_format)
    write_aside()
    try:
        await Front(channel, born).run()
    except QuireError as error:
        channel.send(CannotServe(str(error)))
        channel.close()
        return 2
    return 0


def main() -> int:
    """Serve; the exit status."""
    folders: list[str] = []
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    die_with_parent(signal.SIGCONT)
    threading.Thread(target=_end_with_supervisor, args=[folders], daemon=True).start()
    with asyncio.Runner(loop_factory=loop_factory()) as runner, contextlib.suppress(KeyboardInterrupt):
        return runner.run(_main(int(sys.argv[-1]), folders))
    return 0


if __name__ == "__main__":
    sys.exit(main())
