"""`Supervisor`: one engine core and some front ends, begun again when they die or hang, ended together.

It serves no request and holds no model, so there is little that could harm it: request, engine and server are three
fault domains. Until front ends serve it says that it lives (`startup.py`). The engine is watched by its pulse; while it
is away front ends answer 503. Signals: the first SIGTERM or SIGINT drains, the second ends everything within ABORT_S.
"""

import asyncio
import secrets
import shutil
import signal
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quire.checkpoint.facts import ModelFacts
from quire.config.fields import Config
from quire.engine.launch import CORE, CoreProcess, CoreSetup, private_folder
from quire.engine.pulse import Pulse, shared_page
from quire.messages.control import FrontEndInit, FrontGone, Serving, Stop, Tally, ToFront
from quire.messages.wire import EngineFacts
from quire.server.core_supervisor import CoreSupervisor, StallLimits
from quire.server.fronts import Fronts, close_all
from quire.server.notify import notify
from quire.server.startup import StartupResponder

ABORT_S = 2.5
"""What is left after a second signal is killed."""
CORE_STOP_S = 5.0
GOODBYE_S = 10.0
"""Front ends may take so long beyond the time that running requests get."""


@dataclass(frozen=True, slots=True)
class Commands:
    """What Python runs as core and as front end; benchmarks bring others."""

    core: Sequence[str] = CORE
    front: Sequence[str] = ("-m", "quire.server.front")


OURS = Commands()


class Supervisor:
    """One engine core and some front ends, begun again when they die or hang, ended together.

    Args:
        config: of the whole server.
        model: the checkpoint.
        listeners: a socket for each front end; closed with the server.
        tls: what connections are encrypted with, None where they are not.
        commands: what Python runs.
        on_ready: called once, with the greeting, when all front ends serve.
    """

    def __init__(
        self,
        config: Config,
        model: ModelFacts,
        listeners: list[socket.socket],
        tls: ssl.SSLContext | None,
        commands: Commands,
        on_ready: Callable[[str], None],
    ) -> None:
        self._config = config
        self._model = model
        self._commands = commands
        self._on_ready = on_ready
        self._descriptor = shared_page()
        self._pulse = Pulse(self._descriptor)
        self._folder = private_folder()
        self._listeners = listeners
        self._fronts = Fronts(self, listeners, self._descriptor, commands.front, config.server.stall_timeout_s)
        server = config.server
        self._startup_responder = StartupResponder(server.root_path, tls)
        stall_limits = StallLimits(server.stall_timeout_s, server.load_timeout_s)
        self._core_supervisor = CoreSupervisor(self._start_core, self._pulse, stall_limits, self._fronts.tell_all)
        self._facts: EngineFacts | None = None
        self._secret = secrets.token_hex(16)
        self._greeted = False
        self._signals = 0

    async def run(self) -> None:
        """Serve until signals end it.

        Raises:
            QuireError: the engine or a front end cannot start, or does not stay alive.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        kept: list[asyncio.Task[None]] = []
        try:
            await self._startup_responder.open(self._listeners)
            kept += [asyncio.create_task(self._core_supervisor.keep()), asyncio.create_task(self._keep_fronts())]
            engine, fronts = kept
            await asyncio.wait([engine, fronts], return_when=asyncio.FIRST_COMPLETED)
            if engine.done():
                # Without an error the server is stopping, and its front ends have their goodbyes to say.
                engine.result()
            await fronts
        finally:
            self._core_supervisor.stopping = self._fronts.stopping = True
            self._startup_responder.close()
            self._fronts.kill()
            for task in kept:
                task.cancel()
            await asyncio.gather(*kept, return_exceptions=True)
            await self._fronts.end()
            if self._core_supervisor.core is not None:
                # One that still loads does not look up.
                await self._core_supervisor.core.stop(CORE_STOP_S if self._signals < 2 and self._pulse.serves else 0)
            shutil.rmtree(self._folder, ignore_errors=True)
            close_all(self._listeners, self._descriptor)

    def stop(self) -> None:
        """A signal: drain, then abort."""
        self._signals += 1
        self._core_supervisor.stopping = self._fronts.stopping = True
        loop = asyncio.get_running_loop()
        if self._fronts.serving == 0:
            self._fronts.kill()
        elif self._signals == 1:
            notify("STOPPING=1")
            self._fronts.tell_all(Stop())
            loop.call_later(self._config.server.shutdown_timeout_s + GOODBYE_S, self._fronts.kill)
        elif self._signals == 2:
            self._fronts.tell_all(Stop())
            loop.call_later(ABORT_S, self._fronts.kill)

    async def _keep_fronts(self) -> None:
        await asyncio.gather(*(self._fronts.keep(index) for index in range(len(self._listeners))))

    async def _start_core(self, number: int) -> CoreProcess:
        setup = CoreSetup(self._folder, f"c{number}", self._descriptor, self._secret)
        return await CoreProcess.start(self._config.engine, self._model, self._commands.core, setup)

    def gone(self, name: str) -> None:
        """A front end has died: the core must forget what it asked."""
        if self._core_supervisor.core is not None:
            self._core_supervisor.core.tell(FrontGone(name))

    def born(self, listener: int, name: str) -> list[ToFront]:
        """What a front end is told first."""
        born = FrontEndInit(
            config=self._config,
            model=self._model,
            count=len(self._listeners),
            listener=listener,
            pulse=self._descriptor,
            name=name,
            secret=self._secret,
            folder=str(self._folder),
            facts=self._facts,
        )
        return [born] if self._core_supervisor.news is None else [born, self._core_supervisor.news]

    def serving(self, index: int, serving: Serving) -> None:
        """A front end begins to answer."""
        self._facts = serving.facts
        self._startup_responder.leave(self._listeners[index])
        if not self._greeted and self._fronts.serving == len(self._listeners):
            self._greeted = True
            self._on_ready(serving.greeting)

    def tallies(self) -> list[Tally]:
        """What the supervisor itself counts."""
        return [
            _counter("quire:engine_restarts", "Engines begun after the first one.", self._core_supervisor.cores - 1),
            _counter("quire:front_end_restarts", "Front ends begun after one has died.", self._fronts.restarts),
        ]


def _counter(name: str, about: str, value: int) -> Tally:
    return Tally(name, about, "counter", [(f"{name}_total", {}, float(value))])
