"""A server whose front ends are measured: over a core without a model.

    python benchmarks/lib/null_server.py serve STEP_MS STREAMS FRONT_ENDS [ticking]      (what `null_server` starts)
    python benchmarks/lib/null_server.py front [ticking] FD                              (what that starts)

Front ends get cores of their own where there are enough; the core and the clients share the others.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

NULL_CORE = str(Path(__file__).with_name("null_core.py"))
MODEL = "default"
TICKING = "ticking"


@dataclass(frozen=True)
class Server:
    """A running server: its address and its front ends."""

    url: str
    fronts: list[psutil.Process]

    def busy_s(self) -> float:
        """Processor time that all front ends have taken."""
        return sum(times.user + times.system for times in (front.cpu_times() for front in self.fronts))

    def resident_bytes(self) -> int:
        """Memory of all front ends."""
        return sum(front.memory_info().rss for front in self.fronts)

    def lateness_ms(self) -> list[float]:
        """By how much the first front end's event loop was late, each millisecond since the last call; it must tick."""
        front = self.fronts[0]
        said = said_at(front.pid)
        said.unlink(missing_ok=True)
        front.send_signal(signal.SIGUSR1)
        while not said.exists() or not said.stat().st_size:
            time.sleep(0.01)
        time.sleep(0.05)
        late: list[float] = json.loads(said.read_text())
        said.unlink()
        return [1000 * one for one in late]


@contextmanager
def null_server(step_ms: float, streams: int, front_ends: int = 1, *, ticking: bool = False) -> Iterator[Server]:
    """Our server over a null core; with `ticking` it notes when its event loop is late, which costs a bit."""
    words = [sys.executable, __file__, "serve", str(step_ms), str(streams), str(front_ends), *[TICKING] * ticking]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = next(line.split()[-1] for line in process.stdout if "ready at" in line)
            children = psutil.Process(process.pid).children()
            fronts = [child for child in children if "front" in child.cmdline()]
            cores = list(range(os.cpu_count() or 1))
            if len(cores) > len(fronts):
                for child in children:
                    child.cpu_affinity(cores[: len(fronts)] if child in fronts else cores[len(fronts) :])
                os.sched_setaffinity(0, cores[len(fronts) :])
            yield Server(url, fronts)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)


class Ticks:
    """Wakes every millisecond and remembers by how much it was late: so long the event loop served nobody.

    Time in which the thread was ready and no processor free is left out: it tells of the machine.
    """

    EVERY_S = 0.001
    QUEUED = Path("/proc/thread-self/schedstat")

    def __init__(self) -> None:
        self._late: list[float] = []
        self._telling = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            due, queued = time.perf_counter() + self.EVERY_S, self._queued_s()
            await asyncio.sleep(self.EVERY_S)
            late = time.perf_counter() - due
            if not self._telling:
                self._late.append(max(0.0, late - (self._queued_s() - queued)))
            self._telling = False

    def _queued_s(self) -> float:
        return int(self.QUEUED.read_text().split()[1]) / 1e9

    def tell(self) -> None:
        """Write what was seen since the last time, for `Server.lateness_ms`."""
        late, self._late = self._late, []
        # Writing takes 4 ms, which are not the server's.
        self._telling = True
        said_at(os.getpid()).write_text(json.dumps(late))


def said_at(pid: int) -> Path:
    """Where a front end tells its ticks."""
    return Path(tempfile.gettempdir()) / f"quire-front-{pid}.json"


def limit_descriptors() -> None:
    """Thousands of streams need as many descriptors."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _serve(step_ms: str, streams: str, front_ends: str, *ticking: str) -> int:
    from quire.config.sources import load
    from quire.server.run import Commands, serve

    limit_descriptors()
    given = {"port": "0", "max_num_seqs": streams, "disable_access_log": "true", "log_level": "warning"}
    given |= {"api_server_count": front_ends, "max_num_batched_tokens": str(max(8192, int(streams)))}
    config, _ = load(given, None)
    return serve(config, Commands(core=(NULL_CORE, step_ms), front=(__file__, "front", *ticking)))


def _front() -> int:
    from quire.server.front import Front, main

    run = Front.run

    async def ticked(front: Front) -> None:
        ticks = Ticks()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, ticks.tell)
        await run(front)

    if TICKING in sys.argv:
        Front.run = ticked  # type: ignore[method-assign]
    return main()


if __name__ == "__main__":
    sys.exit(_front() if sys.argv[1] == "front" else _serve(*sys.argv[2:]))
