"""Measures the front end alone: a server over a core without a model, loaded over HTTP from another process.

    python benchmarks/front.py [plain] [streams] [open] [health] [tokenize] [canary] [--api-server-count N]
        [--ledger FILE]

plain    requests a second that are not streamed          streams  streamed tokens a second, and their delay
open     memory of a stream that is open                  health   /health while bodies of 20 MB are posted
tokenize how long prompts of 1 MB hold up the event loop  canary   gaps of a stream beside the costliest bad input

Next to each figure stands the processor time of the front ends: on a busy machine that is what to compare. They get
cores of their own where there are enough, the null core and the clients share the others.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from lib import ledger

from quire.cli.bench import percentile
from quire.cli.load import drive
from quire.cli.load.report import report
from quire.cli.load.traffic import Traffic
from quire.config.sources import load
from quire.server.front import Front
from quire.server.front import main as front_main
from quire.server.run import Commands, serve

NULL_CORE = str(Path(__file__).with_name("null_core.py"))
MODEL = "default"


front_ends = 1


def fronts_of(supervisor: int) -> list[psutil.Process]:
    """The front ends of a server."""
    return [child for child in psutil.Process(supervisor).children() if "serve-front" in child.cmdline()]


@contextmanager
def server(step_ms: float, streams: int) -> Iterator[tuple[str, psutil.Process]]:
    """A server over a null core: its address and its first front end."""
    words = [sys.executable, __file__, "serve-null", str(step_ms), str(streams), str(front_ends)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = next(line.split()[-1] for line in process.stdout if "ready at" in line)
            fronts = fronts_of(process.pid)
            cores = list(range(os.cpu_count() or 1))
            if len(cores) > len(fronts):
                for child in psutil.Process(process.pid).children():
                    child.cpu_affinity(cores[: len(fronts)] if child in fronts else cores[len(fronts) :])
                os.sched_setaffinity(0, cores[len(fronts) :])
            yield url, fronts[0]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)


def serve_null(step_ms: str, streams: str, fronts: str) -> int:
    """The process of `server`."""
    limit_descriptors()
    given = {"port": "0", "max_num_seqs": streams, "disable_access_log": "true", "log_level": "warning"}
    given["api_server_count"] = fronts
    config, _ = load({**given, "max_num_batched_tokens": str(max(8192, int(streams)))}, None)
    return serve(config, Commands(core=(NULL_CORE, step_ms), front=(__file__, "serve-front")))


class Ticks:
    """Wakes every millisecond and remembers by how much it was late: so long the event loop served nobody.

    Time in which the thread was ready and no processor free is left out: it tells of the machine.
    """

    EVERY_S = 0.001
    QUEUED = Path("/proc/thread-self/schedstat")

    def __init__(self) -> None:
        self._late: list[float] = []
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            due, queued = time.perf_counter() + self.EVERY_S, self._queued_s()
            await asyncio.sleep(self.EVERY_S)
            late = time.perf_counter() - due
            self._late.append(max(0.0, late - (self._queued_s() - queued)))

    def _queued_s(self) -> float:
        return int(self.QUEUED.read_text().split()[1]) / 1e9

    def tell(self) -> None:
        """Write what was seen since the last time, for `lateness`."""
        late, self._late = self._late, []
        said_at(os.getpid()).write_text(json.dumps(late))


def said_at(pid: int) -> Path:
    """Where a server of this benchmark tells its ticks."""
    return Path(tempfile.gettempdir()) / f"quire-front-{pid}.json"


def lateness(front: psutil.Process) -> list[float]:
    """By how many milliseconds the server's event loop was late, each millisecond since the last call."""
    said = said_at(front.pid)
    said.unlink(missing_ok=True)
    front.send_signal(signal.SIGUSR1)
    while not said.exists() or not said.stat().st_size:
        time.sleep(0.01)
    time.sleep(0.05)
    late: list[float] = json.loads(said.read_text())
    said.unlink()
    return [1000 * one for one in late]


def serve_front() -> int:
    """The process of a front end."""
    run = Front.run

    async def ticking(front: Front) -> None:
        ticks = Ticks()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, ticks.tell)
        await run(front)

    Front.run = ticking  # type: ignore[method-assign]
    return front_main()


def limit_descriptors() -> None:
    """Thousands of streams need as many descriptors."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def load_on(url: str, requests: int, output: int, *, stream: bool = True, concurrency: int | None = None) -> dict:
    """Figures of so many requests of 16 tokens."""
    extra = {} if stream else {"stream": False, "stream_options": None}
    traffic = Traffic(kind="random", requests=requests, input_len=16, output_len=output, extra=extra)
    samples = drive.run(drive.Job(url=url, model=MODEL, traffic=traffic, concurrency=concurrency))
    return report(samples, {}, (50, 99))


def busy(front: psutil.Process) -> float:
    """Seconds of processor time that all front ends have taken."""
    return sum(times.user + times.system for times in (each.cpu_times() for each in fronts_of(front.ppid())))


def resident(front: psutil.Process) -> int:
    """Bytes of memory of all front ends."""
    return sum(each.memory_info().rss for each in fronts_of(front.ppid()))


def plain() -> Iterator[tuple[str, float, str]]:
    """Requests that are not streamed, 64 at a time, one token each."""
    with server(1.0, 256) as (url, front):
        load_on(url, 500, 1, stream=False, concurrency=64)
        began = busy(front)
        found = load_on(url, 5000, 1, stream=False, concurrency=64)
        assert not found["failed"], found["errors"]
        yield "requests_per_second", found["request_throughput"], "requests/s"
        yield "requests_per_cpu_second", found["completed"] / (busy(front) - began), "requests/s"


def streams() -> Iterator[tuple[str, float, str]]:
    """256 streams at a step of 10 ms (25,600 tokens a second are offered), and as fast as they come."""
    for step_ms, name in ((10.0, "paced"), (1.0, "flood")):
        with server(step_ms, 256) as (url, front):
            load_on(url, 256, 20)
            began = busy(front)
            found = load_on(url, 256, 300)
            assert not found["failed"], found["errors"]
            seconds = busy(front) - began
            yield f"{name}_tokens_per_second", found["output_throughput"], "tokens/s"
            yield f"{name}_tokens_per_cpu_second", found["total_output_tokens"] / seconds, "tokens/s"
            yield f"{name}_p99_added_delay", found["p99_itl_ms"] - step_ms, "ms"


def many_open() -> Iterator[tuple[str, float, str]]:
    """4,000 open streams with a token a second: memory that each adds to the front ends."""
    limit_descriptors()
    with server(1000.0, 4096) as (url, front):
        load_on(url, 64, 2)
        before = resident(front)
        traffic = Traffic(kind="random", requests=4000, input_len=16, output_len=12)
        job = drive.Job(url=url, model=MODEL, traffic=traffic)

        async def watch() -> tuple[int, dict]:
            running = asyncio.create_task(drive.drive(job_now(job)))
            most = before
            while not running.done():
                most = max(most, resident(front))
                await asyncio.sleep(0.5)
            return most, report(await running, {}, (50, 99))

        most, found = asyncio.run(watch())
        assert not found["failed"], found["errors"]
        yield "streams_open", float(found["completed"]), "streams"
        yield "kib_per_open_stream", (most - before) / 4000 / 1024, "KiB"


def job_now(job: drive.Job) -> drive.Job:
    """The job, beginning soon."""
    import msgspec

    return msgspec.structs.replace(job, begins=time.perf_counter() + drive.HEAD_START_S)


def health() -> Iterator[tuple[str, float, str]]:
    """/health while two clients post bodies of 20 MB."""
    with server(10.0, 64) as (url, _):
        body = b'{"model": "default", "max_tokens": 1, "prompt": "' + b"a " * (10 << 20) + b'"}'

        async def measure() -> list[float]:
            async with httpx.AsyncClient(base_url=url, timeout=120) as client:
                stop = asyncio.Event()

                async def post() -> None:
                    while not stop.is_set():
                        await client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})

                posts = [asyncio.create_task(post()) for _ in range(2)]
                waits = []
                for _ in range(300):
                    began = time.perf_counter()
                    assert (await client.get("/health")).status_code == 200
                    waits.append((time.perf_counter() - began) * 1000)
                    await asyncio.sleep(0.02)
                stop.set()
                await asyncio.gather(*posts)
                return waits

        waits = asyncio.run(measure())
        yield "health_median_under_20mb_bodies", statistics.median(waits), "ms"
        yield "health_p99_under_20mb_bodies", percentile(waits, 99), "ms"


class Canary(threading.Thread):
    """One stream after the other, and the milliseconds between their events."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.over = threading.Event()
        self.gaps: list[float] = []

    def run(self) -> None:
        """Until it is over."""
        body = {"model": MODEL, "prompt": [300], "max_tokens": 400, "ignore_eos": True, "stream": True}
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self.over.is_set():
                with client.stream("POST", "/v1/completions", json=body) as answer:
                    last = None
                    for _ in answer.iter_raw():
                        now = time.perf_counter()
                        if last is not None:
                            self.gaps.append(1000 * (now - last))
                        last = now
                        if self.over.is_set():
                            return


def sung(url: str, beside: Callable[[], None]) -> list[float]:
    """Gaps of a canary while `beside` runs."""
    canary = Canary(url)
    canary.start()
    beside()
    canary.over.set()
    canary.join()
    return canary.gaps


def tokenize() -> Iterator[tuple[str, float, str]]:
    """Prompts of 1 MB, which are refused or counted once they are tokenized, beside a stream at 10 ms a step."""
    words = "the captain looked at the sea and said nothing of it to anybody; "
    text = words * ((1 << 20) // len(words))
    chat = [{"role": "user", "content": text}]
    bodies = [("/tokenize", {"prompt": text}), ("/v1/completions", {"prompt": text})]
    bodies.append(("/v1/chat/completions", {"messages": chat}))
    with server(10.0, 64) as (url, front), httpx.Client(base_url=url, timeout=120) as client:

        def post() -> None:
            for path, body in bodies * 5:
                client.post(path, json={"model": MODEL, **body})

        alone = sung(url, lambda: time.sleep(3))
        lateness(front)
        beside = sung(url, post)
        late = lateness(front)
        yield "loop_late_p99_at_1mb_prompts", percentile(late, 99), "ms"
        yield "loop_late_most_at_1mb_prompts", max(late), "ms"
        yield "stream_p99_gap_added_by_1mb_prompts", percentile(beside, 99) - percentile(alone, 99), "ms"


def costly() -> list[tuple[str, bytes]]:
    """Bodies that cost a server the most before they are refused."""
    hi = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    bodies: list[tuple[str, dict[str, object]]] = [
        ("/v1/chat/completions", {**hi, "stop": ["a" * 1024] * 10_000}),
        ("/v1/chat/completions", {**hi, "stop": [1] * 12_000}),
        ("/v1/chat/completions", {**hi, "model": "x" * 10_000_000}),
        ("/v1/chat/completions", {**hi, "messages": [{"role": "user", "content": "a"}] * 100_000}),
        ("/v1/chat/completions", {**hi, "messages": [{"role": "user", "content": "a b"}] * 4_096}),
        ("/v1/completions", {"model": MODEL, "prompt": ["a b c"] * 1_024, "n": 2}),
        ("/v1/completions", {"model": MODEL, "prompt": [5] * 1_000_000}),
        ("/tokenize", {"prompt": "a" * 10_000_000}),
        ("/detokenize", {"tokens": [400] * 1_000_000}),
        ("/detokenize", {"tokens": [1] * 2_000_000}),
    ]
    nested = b"[" * 100_000
    return [*((path, json.dumps(body).encode()) for path, body in bodies), ("/v1/chat/completions", nested)]


def canary() -> Iterator[tuple[str, float, str]]:
    """A stream at 10 ms a step beside the costliest bad input."""
    headers = {"Content-Type": "application/json"}
    bodies = costly() * 3
    with server(10.0, 64) as (url, front), httpx.Client(base_url=url, timeout=120, headers=headers) as client:

        def post() -> None:
            for path, body in bodies:
                client.post(path, content=body)

        alone = sung(url, lambda: time.sleep(5))
        lateness(front)
        beside = sung(url, post)
        yield "loop_late_most_at_bad_input", max(lateness(front)), "ms"
        yield "canary_p99_gap_added", percentile(beside, 99) - percentile(alone, 99), "ms"
        yield "canary_most_gap_added", max(beside) - max(alone), "ms"


ROWS: dict[str, Callable[[], Iterator[tuple[str, float, str]]]] = {
    "plain": plain,
    "streams": streams,
    "open": many_open,
    "health": health,
    "tokenize": tokenize,
    "canary": canary,
}


def main() -> int:
    """Measure, print, record."""
    if sys.argv[1:2] == ["serve-null"]:
        return serve_null(*sys.argv[2:5])
    if sys.argv[1:2] == ["serve-front"]:
        return serve_front()
    global front_ends
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", default=list(ROWS), choices=[*ROWS, []])
    parser.add_argument("--api-server-count", type=int, default=1)
    parser.add_argument("--ledger", type=Path)
    args = parser.parse_args()
    front_ends = args.api_server_count
    for row in args.rows:
        for metric, value, unit in ROWS[row]():
            print(f"{row:8} {metric:34} {value:12,.1f} {unit}", flush=True)
            if args.ledger:
                line = {"commit": ledger.commit(), "metric": metric, "value": value, "unit": unit, "runs": 1}
                ledger.append(args.ledger, {**line, "command": ledger.command()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
