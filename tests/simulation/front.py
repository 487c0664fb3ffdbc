"""A simulated front end: the real `AsyncLLM`, and what keeps it with the core that the supervisor has going."""

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Any

from quire.engine.async_llm import AsyncLLM
from quire.engine.connector import EngineConnector
from quire.engine.front import FrontEnd
from quire.engine.suspects import Suspects
from quire.messages.control import CrashReport, EngineDown, EngineUp
from tests.simulation.core import SECRET, config, model
from tests.simulation.scenario import Scenario

if TYPE_CHECKING:
    from tests.simulation.world import World


@cache
def text_side() -> FrontEnd:
    """Facts and tokenizer, which nothing changes."""
    return FrontEnd(config(Scenario(0, ())), model())


class SimulatedFront:
    """A front end's process."""

    def __init__(self, world: "World", name: str) -> None:
        self.name = name
        self.clients: dict[asyncio.Task[None], None] = {}  # in order, unlike a set
        self._world = world
        self._links: list[Any] = []
        self.engine = AsyncLLM(text_side(), world.facts, world.pulse, self._connect)
        self.engine._open.suspects = Suspects(world.loop.time)
        self.connector = EngineConnector(self.engine, self._joined)
        self.known = asyncio.Event()
        if world.facts is not None:
            self.known.set()
        self._news: asyncio.Queue[EngineUp | EngineDown | CrashReport] = asyncio.Queue()
        self._hearing = world.loop.create_task(self._hear())

    def tell(self, news: EngineUp | EngineDown | CrashReport) -> None:
        """The supervisor says something."""
        self._world.loop.call_later(self._world.scenario.delay_s, self._news.put_nowait, news)

    def die(self) -> None:
        """Signal 9."""
        for link in self._links:
            link.close()
            link.lose()
        self._hearing.cancel()
        self.engine._part = lambda *args: None  # it does not live to say anything
        if self.engine._receiver is not None:
            self.engine._receiver.cancel()
        for client in list(self.clients):
            client.cancel("broken")

    def _joined(self) -> None:
        self._world.ready(self.engine.facts)
        self.known.set()

    def _connect(self, address: str) -> Any:
        link = self._world.network.connect(address, self.name, SECRET)
        self._links = [*self._links[-1:], link]
        return link

    async def _hear(self) -> None:
        while True:
            for report in await self.connector.hear(await self._news.get()):
                self._world.report(self, report)
