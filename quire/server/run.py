"""`serve`: what `quire serve` does. Checks what can be checked, binds the port, then starts and keeps the processes.

Nothing is loaded before: a port that is taken, a file that is missing and a name that is wrong are told at once.
"""

import asyncio
import os
import sys
from pathlib import Path

from quire.base.errors import ConfigError
from quire.base.logging import get_logger, write_aside
from quire.chat.formats.recognise import reasoning_format, tool_format
from quire.checkpoint.headers import read_headers
from quire.config.fields import Config
from quire.config.model import facts_of
from quire.server.keys import keys_of
from quire.server.notify import notify
from quire.server.sockets import bind_all, check_descriptors, check_guard, tls_of
from quire.server.supervisor import OURS, Commands, Supervisor

log = get_logger(__name__)


def serve(config: Config, commands: Commands = OURS) -> int:
    """Serve until a signal; the exit status. Benchmarks bring other `commands`.

    Raises:
        ConfigError: the port is taken, a file is missing or a limit too low; before anything is started.
        CheckpointError: a file of weights is missing or damaged, or the config is wrong; before anything is started.
        QuireError: the engine cannot start.
    """
    write_aside()
    check_descriptors()
    settings = config.engine.model
    listeners = bind_all(config.server)
    try:
        keys_of(config.server)
        check_guard(config.server, listeners[0])
        tls = tls_of(config.server)
        tool_format(config.server.tool_call_parser, "")
        reasoning_format(config.server.reasoning_parser, "")
        _check_template(config.server.chat_template)
        model = facts_of(settings)
        if settings.load_format != "dummy":
            read_headers(model.path)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise

    def on_ready(greeting: str) -> None:
        greet(greeting)
        notify("READY=1")

    async def run() -> None:
        await Supervisor(config, model, listeners, tls, commands, on_ready).run()

    asyncio.run(run())
    return 0


def greet(text: str) -> None:
    """Print `text`. A disk that is full and a reader that has left are no reason not to serve."""
    try:
        print(text, flush=True)
    except OSError as error:
        log.warning("standard output takes nothing: %s", error)
        # What could not be written is still there, and would fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_template(path: str | None) -> None:
    if path is not None and not Path(path).is_file():
        raise ConfigError(f"chat_template: there is no file {path!r}")
