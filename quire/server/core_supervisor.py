"""`CoreSupervisor`: one engine core at a time, watched by its pulse, begun again with back-off when it dies or hangs.

It starts no process itself and has no clock but the event loop's, so the simulator of the tests runs this very code.
Called by the supervisor, which tells front ends what is told here.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from quire.base.errors import EngineError
from quire.base.logging import get_logger
from quire.engine.pulse import Pulse
from quire.messages.control import EngineDown, EngineUp, FrontGone
from quire.server.backoff import Backoff

log = get_logger(__name__)

FIRST_WAIT_S, STEADY_S, TRIES = 1.0, 60.0, 10
STACKS_S = 0.5
"""How long a hung core gets to write what its threads do."""


class Core(Protocol):
    """What is asked of a core's process."""

    @property
    def address(self) -> str:
        """Where it listens."""
        ...

    async def ended(self) -> str:
        """Wait for its end; a sentence that says how it ended."""
        ...

    async def stop(self, timeout_s: float) -> None:
        """Ask it to end, and kill it after so long."""
        ...

    def kill(self) -> None:
        """End it and whatever it has started."""
        ...

    def tell(self, news: FrontGone) -> None:
        """Tell it of front ends."""
        ...

    def tell_stacks(self) -> None:
        """Let it write what each of its threads does."""
        ...


@dataclass(frozen=True, slots=True)
class StallLimits:
    """How long a core may stand still, in seconds: one that serves, and one that loads."""

    serving_s: float
    loading_s: float

    @property
    def tick_s(self) -> float:
        """How often it is looked at."""
        return min(1.0, self.serving_s / 20)

    def left_s(self, pulse: Pulse) -> float:
        """How much longer it may stand still. Noticed by the tick after, and then everybody must be told."""
        if not pulse.serves:
            return self.loading_s - pulse.still_s()
        return max(self.serving_s - 2 * self.tick_s, pulse.patience_s) - pulse.still_s()


class CoreSupervisor:
    """One engine core at a time: begun, watched, begun again with back-off when it dies or hangs.

    Args:
        start: starts a core, the n-th.
        pulse: the page that cores write.
        stall_limits: see `StallLimits`.
        tell: takes news to all front ends.

    Attributes:
        core: the newest.
        cores: how many were begun.
        stopping: whether the next end is meant to be.
        ready_at: when the newest began to serve, by the loop's clock; None before.
    """

    def __init__(
        self,
        start: Callable[[int], Awaitable[Core]],
        pulse: Pulse,
        stall_limits: StallLimits,
        tell: Callable[[EngineUp | EngineDown], None],
    ) -> None:
        self._start = start
        self._pulse = pulse
        self._stall_limits = stall_limits
        self._tell_all = tell
        self._served = False
        self.core: Core | None = None
        self.cores = 0
        self.stopping = False
        self.ready_at: float | None = None
        self.news: EngineUp | EngineDown | None = None

    async def keep(self) -> None:
        """Keep an engine going until it is told to stop.

        Raises:
            EngineError: the first one cannot start, or none stays alive.
        """
        backoff = Backoff(FIRST_WAIT_S, STEADY_S, TRIES)
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            core: Core | None
            try:
                core = await self._begin()
            except OSError as error:
                # No memory, no process, no descriptor: that may pass.
                core, reason = None, f"no engine can be begun: {error}"
            else:
                reason = await self._end_of(core)
                core.kill()
            ready_at = self.ready_at
            if not self._served:
                raise EngineError(self._pulse.said or f"{reason} before it was ready; its log is above")
            if self.stopping:
                self._tell(EngineDown(reason, 10, final=True))
                return
            wait = backoff.died(None if ready_at is None else now() - ready_at)
            if wait is None:
                raise EngineError(f"the engine has ended {backoff.deaths} times in a row: {self._pulse.said or reason}")
            took = 10.0 if ready_at is None else ready_at - began
            self._tell(EngineDown(reason, max(1, math.ceil(wait + took)), self._pulse.tried))
            log.error("%s; another engine begins in %g s", reason, wait)
            if core is not None:
                await core.stop(0)
            await asyncio.sleep(wait)

    async def _begin(self) -> Core:
        self._pulse.reset()
        self.ready_at = None
        self.cores += 1
        self.core = core = await self._start(self.cores)
        self._tell(EngineUp(core.address))
        return core

    async def _end_of(self, core: Core) -> str:
        """Wait until a core has ended, or hangs; a sentence that says so."""
        ended = asyncio.ensure_future(core.ended())
        try:
            while not (await asyncio.wait([ended], timeout=self._stall_limits.tick_s))[0]:
                if self._pulse.serves and self.ready_at is None:
                    self.ready_at = asyncio.get_running_loop().time()
                    self._served = True
                if self._stall_limits.left_s(self._pulse) < 0:
                    return await self._end_hung(core, ended)
            self._served |= self._pulse.serves
            return ended.result()
        finally:
            ended.cancel()

    async def _end_hung(self, core: Core, ended: "asyncio.Future[str]") -> str:
        still_s, doing = self._pulse.still_s(), "moved" if self._pulse.serves else "loaded anything"
        # First of all nobody listens to it any more: what it may still say has been given up.
        self._tell(EngineDown(f"the engine has not {doing} for {still_s:.1f} s", 10, self._pulse.tried))
        log.error("the engine has not %s for %.1f s; this is what its threads do:", doing, still_s)
        core.tell_stacks()
        await asyncio.wait([ended], timeout=STACKS_S)
        core.kill()
        return f"the engine hung for {still_s:.1f} s and was killed"

    def _tell(self, news: EngineUp | EngineDown) -> None:
        self.news = news
        self._tell_all(news)
