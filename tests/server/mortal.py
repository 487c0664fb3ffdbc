"""A whole server of real processes over `mortal_core`, for tests that kill parts of it."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil

START_S = 60
HERE = Path(__file__)
MODEL = "default"


class RunningServer:
    """A running server.

    Attributes:
        process: the supervisor.
        said: its output and that of its children.
    """

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.said: list[str] = []
        self.url = ""
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(r"ready at\s+(http://\S+)", line):
                self.url = found[1]
                self.ready.set()
        self.ready.set()

    def wait(self) -> None:
        """Until it is ready."""
        assert self.ready.wait(START_S) and self.url, self.text()

    def children(self, kind: str) -> list[psutil.Process]:
        """Processes of a kind (mortal_core, quire.server.front), oldest first."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE and kind in " ".join(child.cmdline()):
                    found.append(child)
        return sorted(found, key=lambda child: child.create_time())

    @property
    def core(self) -> psutil.Process:
        """The engine's process."""
        return self.children("mortal_core")[-1]

    @property
    def fronts(self) -> list[psutil.Process]:
        """The front ends' processes."""
        return self.children("quire.server.front")

    def all(self) -> list[psutil.Process]:
        """Every process, the supervisor's own first."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def ready_now(self) -> bool:
        """What /ready says, by a connection of its own."""
        return self.get("/ready").status_code == 200

    def get(self, path: str) -> httpx.Response:
        """Ask whichever front end answers."""
        return httpx.get(f"{self.url}{path}", timeout=20)

    def complete(self, prompt: list[int], tokens: int, **more: object) -> httpx.Response:
        """A plain completion."""
        return httpx.post(f"{self.url}/v1/completions", json=body(prompt, tokens, **more), timeout=60)

    def text(self) -> str:
        """All that was said."""
        return "".join(self.said)


class Reader(threading.Thread):
    """A client that reads a stream to its end.

    Attributes:
        events: what came.
        begun: set with the first event.
    """

    def __init__(self, family: RunningServer, prompt: list[int], tokens: int) -> None:
        super().__init__(daemon=True)
        self.family, self.json = family, body(prompt, tokens, stream=True, return_token_ids=True)
        self.events: list[dict] = []
        self.done = self.broken = False
        self.begun = threading.Event()
        self._left = False
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", f"{self.family.url}/v1/completions", json=self.json, timeout=60) as answer:
                for line in answer.iter_lines():
                    if self._left:
                        break
                    if line == "data: [DONE]":
                        self.done = True
                    elif line.startswith("data: "):
                        self.events.append(json.loads(line[6:]))
                        self.begun.set()
        except httpx.HTTPError:
            self.broken = True

    def leave(self) -> None:
        """Hang up."""
        self._left = True

    @property
    def error(self) -> str | None:
        """The code of the error event, if one came."""
        return next((event["error"]["code"] for event in self.events if "error" in event), None)

    @property
    def tokens(self) -> list[int]:
        """All that came."""
        return [
            t for event in self.events for choice in event.get("choices", ()) for t in choice.get("token_ids") or ()
        ]


def body(prompt: list[int], tokens: int, **more: object) -> dict[str, object]:
    """A greedy completion of so many tokens."""
    return {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}


@contextlib.contextmanager
def server(*flags: str, step_ms: float = 5.0, wait: bool = True) -> Iterator[RunningServer]:
    """Run `quire serve` over a mortal core with these flags; whatever is left of it is killed."""
    words = [sys.executable, str(HERE), str(step_ms), *flags]
    # A folder is left where nobody is left to remove it.
    scratch = tempfile.TemporaryDirectory(prefix="mortal-", ignore_cleanup_errors=True)
    environ = {**os.environ, "PYTHONPATH": str(HERE.parents[2]), "TMPDIR": scratch.name}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)
    family = RunningServer(process)
    known: list[psutil.Process] = []
    try:
        if wait:
            family.wait()
        yield family
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            known = family.all()
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        for each in known:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        family.reader.join(10)
        process.stdout.close()
        scratch.cleanup()


def until(condition: Callable[[], object], seconds: float = 20.0) -> float:
    """Wait for `condition`; how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "what was waited for did not happen"
        time.sleep(0.02)
    return time.monotonic() - began


def gone(processes: list[psutil.Process]) -> bool:
    """Whether none of them is left."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                return False
    return True


if __name__ == "__main__":
    from quire.base.logging import setup
    from quire.config.sources import load
    from quire.server import core_supervisor
    from quire.server.run import Commands, serve

    # `test_supervision.py` has the waits; here every death would cost seconds.
    core_supervisor.FIRST_WAIT_S = 0.2

    given = dict(word.split("=", 1) for word in sys.argv[2:])
    config, _ = load({"port": "0", "max_num_seqs": "64", **given}, None)
    setup()
    sys.exit(serve(config, Commands(core=(str(HERE.with_name("mortal_core.py")), sys.argv[1]))))
