"""Starting the engine core in a process of its own, and knowing when it has ended.

The child is `python -m quire.engine.process`: never a function reference, so callers need no `__main__` guard. It gets
its launch message on standard input, which stays open: when this process dies, the child reads the end and follows.
"""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from quire.checkpoint.facts import ModelFacts
from quire.config import environ
from quire.config.fields import EngineConfig

CORE = ("-m", "quire.engine.process")
"""What Python runs as the core."""


class Launch(msgspec.Struct):
    """What a core process starts from.

    Attributes:
        config: what the user asked for.
        model: the checkpoint, resolved once, by the launcher.
        address: where to listen for front ends (ZeroMQ).
    """

    config: EngineConfig
    model: ModelFacts
    address: str


class CoreProcess:
    """A running engine core and the private folder of its socket."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, address: str) -> None:
        self._process = process
        self._folder = folder
        self.address = address

    @classmethod
    async def start(cls, config: EngineConfig, model: ModelFacts, core: Sequence[str] = CORE) -> "CoreProcess":
        """Start a core; it listens at `address` before it loads anything. Another `core` must speak as ours does."""
        # mkdtemp gives a folder that only this user may enter: the socket needs no other lock.
        folder = Path(tempfile.mkdtemp(prefix="quire-"))
        address = f"ipc://{folder}/core"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *core,
            stdin=asyncio.subprocess.PIPE,
            env=environ.snapshot() | environ.computing(),
        )
        assert process.stdin is not None
        frame = msgspec.json.encode(Launch(config, model, address))
        process.stdin.write(frame + b"\n")
        await process.stdin.drain()
        return cls(process, folder, address)

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    async def ended(self) -> str:
        """Wait for the end of the process; a sentence that says how it ended."""
        code = await self._process.wait()
        return (
            f"the engine process was ended by signal {-code}" if code < 0 else f"the engine process ended with {code}"
        )

    async def stop(self, timeout_s: float) -> None:
        """Ask the process to end, by closing its standard input; kill it after `timeout_s` seconds."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), timeout_s)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
