"""`serve`: what `quire serve` does. Binds the port, starts the engine, says what was chosen, serves until told to stop.

The first SIGTERM or SIGINT drains: /ready says 503, new work is refused, running requests get `shutdown_timeout_s`.
A second signal ends them at once. A dead engine does not end the server: it goes on answering 503.
"""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from quire.base.errors import ConfigError
from quire.base.logging import get_logger
from quire.chat.formats.recognise import reasoning_format, tool_format
from quire.chat.template import ChatTemplate
from quire.config.fields import Config, ServerConfig
from quire.engine.async_llm import AsyncLLM
from quire.server.app import create_app
from quire.server.greeting import greeting
from quire.server.keys import keys_of
from quire.server.listen import ApiServer, bind, check_certificates
from quire.server.notify import notify

log = get_logger(__name__)


def serve(config: Config) -> int:
    """Serve until a signal; the exit status.

    Raises:
        ConfigError: the port is taken or a file is missing; before the engine is started.
        QuireError: the engine cannot start.
    """
    with (
        bind(config.server) as listener,
        asyncio.Runner(loop_factory=_new_loop()) as runner,
        # Stopped while the engine was still loading.
        contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError),
    ):
        runner.run(_serve(config, listener))
    return 0


async def _serve(config: Config, listener: socket.socket) -> None:
    template_source = _template_source(config.server)
    # What is wrong with a name or a file is told before the engine loads.
    keys_of(config.server)
    check_certificates(config.server)
    tool_format(config.server.tool_call_parser, "")
    reasoning_format(config.server.reasoning_parser, "")
    starting = asyncio.current_task()
    assert starting is not None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, starting.cancel)
    engine = await AsyncLLM.start(config.engine)
    loop.remove_signal_handler(signal.SIGTERM)
    try:
        engine.on_death = lambda reason: log.error(
            "the engine has stopped, requests are refused from now on: %s", reason
        )
        template = engine.chat_template if template_source is None else ChatTemplate(template_source, engine.tokenizer)
        app = create_app(engine, config.server, template)

        def on_ready() -> None:
            print(greeting(app.state.service, listener), flush=True)
            notify("READY=1")

        server = ApiServer(app, config.server, on_ready, on_stop=lambda: notify("STOPPING=1"))
        await server.serve([listener])
        app.state.service.tracer.close()
    finally:
        engine.on_death = lambda reason: None
        await engine.close()


def _template_source(config: ServerConfig) -> str | None:
    if config.chat_template is None:
        return None
    try:
        return Path(config.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template: cannot read {config.chat_template!r}: {error}") from error


def _new_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it exists, which is everywhere but on Windows."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
