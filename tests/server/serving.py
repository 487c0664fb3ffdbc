"""A real server on a loopback port for tests: our uvicorn set-up, our application, a fake engine."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import httpx
import openai

from quire.config.fields import ServerConfig
from quire.server.app import create_app
from quire.server.listen import ApiServer
from quire.server.sockets import bind
from tests.server.fake_engine import FakeEngine, FakeTemplate
from tests.waiting import HANG_S, wait_for


class Serving:
    """A server in a thread, from `with` to its end.

    Args:
        engine: the fake behind it.
        chat: whether the model has a chat template.
        template: the chat template, if it is not the usual one.
        settings: fields of ServerConfig.
    """

    def __init__(
        self,
        engine: FakeEngine | None = None,
        *,
        chat: bool = True,
        template: FakeTemplate | None = None,
        **settings: Any,
    ) -> None:
        self.engine = engine or FakeEngine()
        self.config = ServerConfig(**{"disable_access_log": True, **settings})
        self.template = (template or FakeTemplate(self.engine.tokenizer)) if chat else None
        self.app = create_app(self.engine, self.config, self.template)
        self.service = self.app.state.service
        self.server = ApiServer(self.app, self.config)
        self.server.config.timeout_graceful_shutdown = int(HANG_S) // 2
        self._listener = bind(replace(self.config, host="127.0.0.1", port=0))
        self.port: int = 0 if self.config.uds else self._listener.getsockname()[1]
        scheme = "http" if self.config.ssl_certfile is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.run(self.server.serve([self._listener]))

    def __enter__(self) -> Self:
        self.thread.start()
        wait_for(lambda: self.server.started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.should_exit = True
        for watch in list(self.service.open_watches):
            self.call(watch.give_up)
        self.thread.join(HANG_S)
        self._listener.close()
        assert not self.thread.is_alive(), "the server must stop"

    def call(self, function: Callable[[], object]) -> None:
        """Run a function on the server's loop."""
        self.server._loop.call_soon_threadsafe(function)

    def client(self, **options: Any) -> openai.OpenAI:
        """The official client."""
        given = {"base_url": f"{self.url}/v1", "api_key": self.config.api_key or "none", "max_retries": 0, **options}
        return openai.OpenAI(timeout=HANG_S, **given)

    def http(self, **options: Any) -> httpx.Client:
        """A plain client."""
        return httpx.Client(base_url=self.url, timeout=HANG_S, **options)
