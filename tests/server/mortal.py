"""A whole server of real processes over `mortal_core`, for tests that kill parts of it."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from tests.waiting import HANG_S

HERE = Path(__file__)
MODEL = "default"
FAST_MS, SLOW_MS = 5.0, 250.0
"""How long steps take: as a rule, and where nothing that has begun may end before somebody has looked."""


class RunningServer:
    """A running server.

    Attributes:
        process: the supervisor.
        said: its output and that of its children.
    """

    def __init__(self, process: subprocess.Popen, step_ms: Path, barred: Path) -> None:
        self.process = process
        self._step_ms, self._barred = step_ms, barred
        self.said: list[str] = []
        self.url = ""
        self._greeted = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(r"ready at\s+(http://\S+)", line):
                self.url = found[1]
                self._greeted.set()
        self._greeted.set()

    def wait(self) -> None:
        """Until it is ready."""
        assert self._greeted.wait(2 * HANG_S) and self.url, self.text()

    def pace(self, step_ms: float) -> None:
        """Steps of the engine take so long from now on."""
        following = self._step_ms.with_suffix(".next")
        following.write_text(str(step_ms))
        following.replace(self._step_ms)

    @contextlib.contextmanager
    def barred(self) -> Iterator[None]:
        """No engine becomes ready meanwhile."""
        self._barred.touch()
        try:
            yield
        finally:
            self._barred.unlink()

    def children(self, kind: str) -> list[psutil.Process]:
        """Processes of a kind (mortal_core, mortal_front), oldest first."""
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
        return self.children("mortal_front")

    def all(self) -> list[psutil.Process]:
        """Every process, the supervisor's own first."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def port(self) -> int:
        """Where the supervisor listens, also before anything serves."""
        lines = psutil.Process(self.process.pid).net_connections("tcp")
        return next((line.laddr.port for line in lines if line.status == psutil.CONN_LISTEN), 0)

    def serves(self) -> bool:
        """Whether all front ends say that they are ready."""
        return self._ready() == {True}

    def is_away(self) -> bool:
        """Whether all of them say that they are not."""
        return self._ready() == {False}

    def _ready(self) -> set[bool]:
        said: dict[int, bool] = {}
        while len(said) < len(self.fronts):
            with httpx.Client(base_url=self.url, timeout=HANG_S) as client:
                answer = client.get("/ready")
                if front := self.front_of(answer):
                    said[front] = answer.status_code == 200
        return set(said.values())

    def front_of(self, answer: httpx.Response) -> int:
        """The process of the front end that gave an answer; 0 if it has closed the connection."""
        port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
        for front in self.fronts:
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(line.raddr and line.raddr.port == port for line in front.net_connections("tcp")):
                    return front.pid
        return 0

    def get(self, path: str) -> httpx.Response:
        """Ask whichever front end answers."""
        return httpx.get(f"{self.url}{path}", timeout=HANG_S)

    def complete(self, prompt: list[int], tokens: int, **more: object) -> httpx.Response:
        """A plain completion."""
        return httpx.post(f"{self.url}/v1/completions", json=body(prompt, tokens, **more), timeout=2 * HANG_S)

    def text(self) -> str:
        """All that was said."""
        return "".join(self.said)


class Reader(threading.Thread):
    """A client that reads a stream to its end.

    Attributes:
        events: what came.
        front: the process of the front end that it has connected to.
        begun: set with the first event.
    """

    def __init__(self, family: RunningServer, prompt: list[int], tokens: int) -> None:
        super().__init__(daemon=True)
        self.family, self.json = family, body(prompt, tokens, stream=True, return_token_ids=True)
        self.events: list[dict] = []
        self.front = 0
        self.done = self.broken = False
        self.begun = threading.Event()
        self._left = False
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", f"{self.family.url}/v1/completions", json=self.json, timeout=HANG_S) as answer:
                # Whoever looked while a process came or went has not found it, and looks again.
                for _ in range(10):
                    self.front = self.front or self.family.front_of(answer)
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
def server(*flags: str, wait: bool = True, barred: bool = False) -> Iterator[RunningServer]:
    """Run `quire serve` over a mortal core with these flags; whatever is left of it is killed.

    Args:
        flags: settings, as name=value.
        wait: until it is ready.
        barred: it never is.
    """
    # A folder is left where nobody is left to remove it.
    scratch = tempfile.TemporaryDirectory(prefix="mortal-", ignore_cleanup_errors=True)
    files = [Path(scratch.name, name) for name in ("step_ms", "barred")]
    words = [sys.executable, str(HERE), *map(str, files), *flags]
    environ = {**os.environ, "PYTHONPATH": str(HERE.parents[2]), "TMPDIR": scratch.name}
    files[0].write_text(str(FAST_MS))
    if barred:
        files[1].touch()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)
    family = RunningServer(process, *files)
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
            process.wait(HANG_S)
        process.kill()
        for each in known:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        family.reader.join(HANG_S)
        process.stdout.close()
        scratch.cleanup()


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
    from quire.server import core_supervisor, fronts, startup, supervisor
    from quire.server.run import Commands, serve

    # `test_supervision.py` has the waits; here every death would cost seconds.
    core_supervisor.FIRST_WAIT_S = 0.2
    core_supervisor.STACKS_S = fronts.STACKS_S = fronts.ANSWER_S = HANG_S
    # Tests give up before these are over: whatever they see ends because of what has happened.
    supervisor.ABORT_S = supervisor.CORE_STOP_S = supervisor.GOODBYE_S = fronts.GONE_S = 2 * HANG_S
    startup.PATIENCE_S = startup.LINGER_S = HANG_S

    given = dict(word.split("=", 1) for word in sys.argv[3:])
    config, _ = load({"port": "0", "max_num_seqs": "64", **given}, None)
    setup()
    core, front = (str(HERE.with_name(name)) for name in ("mortal_core.py", "mortal_front.py"))
    sys.exit(serve(config, Commands(core=(core, *sys.argv[1:3]), front=(front,))))
