"""`Supervisor`: one engine core and some front ends, begun again when they die or hang, ended together.

It answers no request and holds no model, so there is little that could harm it: request, engine and server are three
fault domains. The engine is watched by its pulse; while it is away front ends answer 503. Signals: the first SIGTERM or
SIGINT drains, the second ends everything within ABORT_S.
"""

import asyncio
import math
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from quire.base.errors import EngineError
from quire.base.logging import get_logger
from quire.checkpoint.facts import ModelFacts
from quire.config.fields import Config
from quire.engine.launch import CORE, CoreProcess, Home, private_folder
from quire.engine.pulse import Pulse, shared_page
from quire.messages.control import Born, EngineDown, EngineUp, Serving, Stop, Tally, ToFront
from quire.messages.wire import EngineFacts
from quire.server.backoff import Backoff
from quire.server.fronts import Fronts, close_all
from quire.server.notify import notify

log = get_logger(__name__)

FIRST_WAIT_S, STEADY_S, TRIES = 1.0, 60.0, 10
ABORT_S = 2.5
"""What is left after a second signal is killed."""
STACKS_S = 0.5
"""How long a hung core gets to write what its threads do."""
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
    """See the module.

    Args:
        config: of the whole server.
        model: the checkpoint.
        listeners: a socket for each front end.
        commands: what Python runs.
        on_ready: called once, with the greeting, when all front ends serve.
    """

    def __init__(
        self,
        config: Config,
        model: ModelFacts,
        listeners: list[socket.socket],
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
        self._fronts = Fronts(self._born, listeners, self._descriptor, self._serving, commands.front, self._tallies)
        self._core: CoreProcess | None = None
        self._news: EngineUp | EngineDown | None = None
        self._facts: EngineFacts | None = None
        self._cores = 0
        self._ready_at: float | None = None
        self._greeted = False
        self._signals = 0
        limit = config.server.stall_timeout_s
        self._tick_s = min(1.0, limit / 20)
        # Noticed by the tick after, and then it takes a moment until everybody knows.
        self._limit_s = limit - 2 * self._tick_s

    async def run(self) -> None:
        """Serve until signals end it.

        Raises:
            QuireError: the engine or a front end cannot start, or does not stay alive.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        engine = asyncio.create_task(self._keep_engine())
        fronts = asyncio.create_task(self._keep_fronts())
        try:
            await asyncio.wait([engine, fronts], return_when=asyncio.FIRST_COMPLETED)
            if engine.done():
                # Without an error the server is stopping, and its front ends have their goodbyes to say.
                engine.result()
            await fronts
        finally:
            self._fronts.stopping = True
            self._fronts.kill()
            for task in (engine, fronts):
                task.cancel()
            await asyncio.gather(engine, fronts, return_exceptions=True)
            if self._core is not None:
                # One that still loads does not look up.
                await self._core.stop(CORE_STOP_S if self._signals < 2 and self._ready_at is not None else 0)
            shutil.rmtree(self._folder, ignore_errors=True)
            close_all(self._listeners, self._descriptor)

    def stop(self) -> None:
        """A signal: drain, then abort."""
        self._signals += 1
        self._fronts.stopping = True
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

    async def _keep_engine(self) -> None:
        backoff = Backoff(FIRST_WAIT_S, STEADY_S, TRIES)
        while True:
            began = monotonic()
            core = await self._start_core()
            reason = await self._end_of(core)
            ready_at = self._ready_at
            core.kill()
            if ready_at is None and self._facts is None:
                raise EngineError(self._pulse.said or f"{reason} before it was ready; its log is above")
            if self._fronts.stopping:
                self._tell(EngineDown(reason, 10, final=True))
                return
            wait = backoff.died(None if ready_at is None else monotonic() - ready_at)
            if wait is None:
                raise EngineError(f"the engine has ended {backoff.deaths} times in a row: {self._pulse.said or reason}")
            took = 10.0 if ready_at is None else ready_at - began
            self._tell(EngineDown(reason, max(1, math.ceil(wait + took)), self._pulse.tried))
            log.error("%s; another engine begins in %g s", reason, wait)
            await core.stop(0)
            await asyncio.sleep(wait)

    async def _start_core(self) -> CoreProcess:
        self._pulse.reset()
        self._ready_at = None
        self._cores += 1
        home = Home(self._folder, f"core-{self._cores}", self._descriptor)
        self._core = core = await CoreProcess.start(self._config.engine, self._model, self._commands.core, home)
        self._tell(EngineUp(core.address))
        return core

    async def _end_of(self, core: CoreProcess) -> str:
        """Wait until a core has ended, or hangs; a sentence that says so."""
        ended = asyncio.create_task(core.ended())
        try:
            while not (await asyncio.wait([ended], timeout=self._tick_s))[0]:
                still_s = self._pulse.still_s()
                if still_s is not None and self._ready_at is None:
                    self._ready_at = monotonic()
                if still_s is not None and still_s > max(self._limit_s, self._pulse.patience_s):
                    # First of all nobody listens to it any more: what it may still say has been given up.
                    self._tell(EngineDown(f"the engine has not moved for {still_s:.1f} s", 10, self._pulse.tried))
                    log.error("the engine has not moved for %.1f s; this is what its threads do:", still_s)
                    core.tell_stacks()
                    await asyncio.wait([ended], timeout=STACKS_S)
                    core.kill()
                    return f"the engine hung for {still_s:.1f} s and was killed"
            return ended.result()
        finally:
            ended.cancel()

    def _tell(self, news: EngineUp | EngineDown) -> None:
        self._news = news
        self._fronts.tell_all(news)

    def _born(self, listener: int) -> list[ToFront]:
        born = Born(
            config=self._config,
            model=self._model,
            count=len(self._listeners),
            listener=listener,
            pulse=self._descriptor,
            folder=str(self._folder),
            facts=self._facts,
        )
        return [born] if self._news is None else [born, self._news]

    def _serving(self, serving: Serving) -> None:
        self._facts = serving.facts
        if not self._greeted and self._fronts.serving == len(self._listeners):
            self._greeted = True
            self._on_ready(serving.greeting)

    def _tallies(self) -> list[Tally]:
        """What the supervisor itself counts."""
        return [
            _counter("quire:engine_restarts", "Engines begun after the first one.", self._cores - 1),
            _counter("quire:front_end_restarts", "Front ends begun after one has died.", self._fronts.restarts),
        ]


def _counter(name: str, about: str, value: int) -> Tally:
    return Tally(name, about, "counter", [(f"{name}_total", {}, float(value))])
