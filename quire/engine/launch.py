"""Starting the engine core in a process of its own, and knowing when it has ended.

The child is `python -m quire.engine.process`: never a function reference, so callers need no `__main__` guard. It gets
its launch message on standard input, which stays open: when this process dies, the child reads the end and follows.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from quire.base.interpreter import python
from quire.checkpoint.facts import ModelFacts
from quire.config import environ
from quire.config.fields import EngineConfig
from quire.messages.control import FrontGone

LENGTH_BYTES = 4
"""Before the launch message on standard input; lines of news follow it."""

CORE = ("-m", "quire.engine.process")
"""What Python runs as the core."""


class Launch(msgspec.Struct):
    """What a core process starts from.

    Attributes:
        config: what the user asked for.
        model: the checkpoint, resolved once, by the launcher.
        address: where to listen for front ends (ZeroMQ).
        pulse: descriptor of the page that it shares with those who watch it, if anybody does.
        secret: what front ends must know.
    """

    config: EngineConfig
    model: ModelFacts
    address: str
    pulse: int = -1
    secret: str = ""


@dataclass(frozen=True, slots=True)
class CoreSetup:
    """What a launcher has ready for a core.

    Attributes:
        folder: private to the user.
        name: of the core's own folder in it, new for each core: nothing that was meant for another one reaches it. A
            core that is alone has all of `folder`.
        pulse: descriptor of the shared page; -1 is none.
        secret: what front ends must know.
    """

    folder: Path
    name: str = "."
    pulse: int = -1
    secret: str = ""


def private_folder() -> Path:
    """A folder that only this user may enter: sockets in it need no other lock."""
    return Path(tempfile.mkdtemp(prefix="quire-"))


class CoreProcess:
    """A running engine core; it leads a process group of its own, which its ranks and grammar checker belong to.

    Its socket and its temporary files lie in a folder of its own, which is removed with it, however it ends.
    """

    def __init__(self, process: asyncio.subprocess.Process, address: str, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._over = False
        self.address = address

    @classmethod
    async def start(
        cls, config: EngineConfig, model: ModelFacts, core: Sequence[str], setup: CoreSetup
    ) -> "CoreProcess":
        """Start a core; it listens at `address` before it loads anything. Another `core` must speak as ours does."""
        folder = setup.folder / setup.name
        if folder != setup.folder:
            folder.mkdir()
        # Short: a socket's path has 107 bytes at most, and that of the temporary folder may be long.
        address = f"ipc://{folder}/s"
        try:
            process = await asyncio.create_subprocess_exec(
                *python(),
                *core,
                stdin=asyncio.subprocess.PIPE,
                env=environ.snapshot() | environ.computing() | {"TMPDIR": str(folder)},
                pass_fds=[] if setup.pulse < 0 else [setup.pulse],
                # Ctrl-C in a terminal is for the launcher, which ends the core in its own way.
                start_new_session=True,
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        assert process.stdin is not None
        frame = msgspec.json.encode(Launch(config, model, address, setup.pulse, setup.secret))
        # One that has ended already is found by whoever waits for its end.
        with contextlib.suppress(ConnectionError):
            process.stdin.write(len(frame).to_bytes(LENGTH_BYTES) + frame)
            await process.stdin.drain()
        return cls(process, address, folder)

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    async def ended(self) -> str:
        """Wait for the end of the process; a sentence that says how it ended."""
        code = await self._process.wait()
        if code >= 0:
            return f"the engine process ended with {code}"
        why = " (as the system does where memory runs out)" if code == -signal.SIGKILL else ""
        return f"the engine process was ended by signal {-code}{why}"

    async def stop(self, timeout_s: float) -> None:
        """Ask the process to end, by closing its standard input; kill it after `timeout_s` seconds."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), timeout_s)
        self.kill()
        await self._process.wait()
        self._over = True
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """End the core and whatever it has started, also if the core itself has ended."""
        if self._over:
            return  # its number may be somebody else's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def tell(self, news: FrontGone) -> None:
        """Tell the core something of its front ends, without waiting."""
        stdin = self._process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(msgspec.json.encode(news) + b"\n")

    def tell_stacks(self) -> None:
        """Let the core write what each of its threads does to its log, also if it was stopped."""
        for number in (signal.SIGUSR1, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
