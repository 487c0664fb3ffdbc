"""Measures the front end alone: a server over a core without a model, loaded over HTTP from another process.

    python benchmarks/front.py [plain] [streams] [open] [health] [--api-server-count N]
        [--ledger FILE]

plain    requests a second that are not streamed          streams  streamed tokens a second, and their delay
open     memory of a stream that is open                  health   /health while bodies of 20 MB are posted

Next to each figure stands the processor time of the front ends: on a busy machine that is what to compare. They get
cores of their own where there are enough, the null core and the clients share the others.
"""

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
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


def serve_front() -> int:
    """The process of a front end."""
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


ROWS: dict[str, Callable[[], Iterator[tuple[str, float, str]]]] = {
    "plain": plain,
    "streams": streams,
    "open": many_open,
    "health": health,
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
