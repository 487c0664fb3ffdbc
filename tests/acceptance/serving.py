"""`quire serve` as a user starts it: a process of its own on a free port, until the test is done with it."""

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import psutil

from tests.waiting import HANG_S

START_S = 120


@dataclass
class Served:
    """A running server: its process, its address and what it has said."""

    process: subprocess.Popen
    url: str = ""
    said: list[str] = field(default_factory=list)

    def get(self, path: str) -> httpx.Response:
        """What is served there."""
        return httpx.get(self.url + path, timeout=HANG_S)

    def metric(self, name: str) -> float:
        """A gauge or counter of /metrics."""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"quire:{name}{{"):
                return float(line.rpartition(" ")[2])
        raise KeyError(name)

    def engine(self) -> psutil.Process:
        """The engine core's process."""
        return self._child("quire.engine.process")

    def front(self) -> psutil.Process:
        """The front end's process."""
        return self._child("quire.server.front")

    def _child(self, module: str) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        (child,) = [child for child in children if module in child.cmdline()]
        return child


@contextlib.contextmanager
def serve(*flags: str) -> Iterator[Served]:
    """Run `quire serve` with these flags; ends it with SIGTERM unless the test has."""
    process = subprocess.Popen(
        [sys.executable, "-m", "quire.cli", "serve", "--port", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    served = Served(process)
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            served.said.append(line)
            if found := re.search(r"ready at\s+(http://\S+)", line):
                served.url = found[1]
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(START_S) and served.url, "".join(served.said)
        yield served
    finally:
        process.terminate()
        try:
            process.wait(HANG_S)
        finally:
            process.kill()
        reader.join(HANG_S)
        process.stdout.close()
