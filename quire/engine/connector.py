"""`EngineConnector`: keeps an `AsyncLLM` with whichever core a supervisor has going."""

import asyncio
from collections.abc import Callable

from quire.base.logging import get_logger
from quire.engine.async_llm import AsyncLLM
from quire.messages.control import CrashReport, EngineDown, EngineUp

log = get_logger(__name__)


class EngineConnector:
    """Keeps an `AsyncLLM` with whichever core a supervisor has going.

    Args:
        engine: what is kept.
        on_joined: called whenever a core serves it.
    """

    def __init__(self, engine: AsyncLLM, on_joined: Callable[[], None] = lambda: None) -> None:
        self._engine = engine
        self._on_joined = on_joined
        self._joining: asyncio.Task[None] | None = None

    async def hear(self, news: EngineUp | EngineDown | CrashReport) -> list[CrashReport]:
        """Act on what the supervisor says; what other front ends must learn of it."""
        if isinstance(news, CrashReport):
            self._engine.suspects.learn(news)
        elif isinstance(news, EngineUp):
            self._joining = asyncio.create_task(self._join(news.address))
        else:
            await self.stop()
            if not news.final:
                return self._engine.leave(news.reason, news.retry_after_s, news.culprit)
            self._engine.end(news.reason)
        return []

    async def stop(self) -> None:
        """Join no core any more."""
        if self._joining is not None:
            self._joining.cancel()
            await asyncio.gather(self._joining, return_exceptions=True)

    async def _join(self, address: str) -> None:
        try:
            await self._engine.join(address)
        except Exception:
            # Without the core's first words nothing can be asked of it, and what it was not asked again nobody answers.
            log.exception("the engine cannot be joined")
            self._engine.end("the engine cannot be joined")
            self._engine.on_lost()
            return
        if self._engine.dead is None:
            self._on_joined()
