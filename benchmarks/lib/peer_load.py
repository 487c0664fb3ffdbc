"""The load under which the peer was measured over HTTP: the same prompts at the same moments, from as many processes.

What the peer was sent is on record: its generator draws in each of four processes gap, length and token ids in turn,
seed 0, gaps by `expovariate` of the process's share of the rate; `drawn` draws the same. So the prompts of a row at a
rate begin with all those of a row at a lower rate: on one server these are in the prefix cache by then, unless each row
is given a `seed` of its own. Latencies count from the moment a request was due. All processes count from one moment,
where the peer's began one after the other: a few milliseconds decide whether prompts of a crowd share a step.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import msgspec

from quire.base.event_loop import loop_factory
from quire.cli.address import Address
from quire.cli.load.client import Client, Sample
from quire.cli.load.drive import HEAD_START_S
from quire.cli.load.traffic import COMPLETIONS

PROCESSES = 4
SEEDS = 1000
"""Seeds of the processes of one row lie between this and the next multiple."""
FIRST_TOKEN, END_TOKEN = 1_000, 30_000


class PeerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent.

    Attributes:
        requests: in all.
        prompt: tokens, on average; between a half and three halves of them are sent.
        output: tokens to generate.
        rate: requests a second, or None.
        streams: at a time, where there is no rate.
        seed: of the prompts and the gaps.
        begins: `time.perf_counter` from which gaps count; it is the same clock in all processes.
    """

    url: str
    model: str
    requests: int
    prompt: int
    output: int
    rate: float | None = None
    streams: int | None = None
    seed: int = 0
    begins: float = 0.0


def drawn(load: PeerLoad, process: int) -> Iterator[tuple[float, list[int]]]:
    """Seconds to wait after the request before, and the prompt, of each request of a process."""
    rng = random.Random(load.seed * SEEDS + process)
    for _ in range(load.requests // PROCESSES):
        gap = rng.expovariate(load.rate / PROCESSES) if load.rate else 0.0
        length = rng.randint(load.prompt // 2, load.prompt * 3 // 2)
        yield gap, [rng.randrange(FIRST_TOKEN, END_TOKEN) for _ in range(length)]


async def send(load: PeerLoad, process: int) -> list[Sample]:
    """The share of a process."""
    client = Client(Address.of(load.url, "--base-url"), None)
    settings = {"max_tokens": load.output, "temperature": 0, "ignore_eos": True}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    samples: list[Sample] = []

    async def ask(ids: list[int], due: float) -> None:
        samples.append(sample := Sample(due))
        await client.stream(COMPLETIONS, {"model": load.model, "prompt": ids, **settings, **stream}, sample)

    async def worker() -> None:
        for _, ids in waiting:
            await ask(ids, time.perf_counter())

    waiting = drawn(load, process)
    if load.rate is None:
        await asyncio.gather(*(worker() for _ in range(max(1, (load.streams or 1) // PROCESSES))))
        return samples
    due = load.begins
    async with asyncio.TaskGroup() as asked:
        for gap, ids in waiting:
            due += gap
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.create_task(ask(ids, due))
    return samples


def _process(load: PeerLoad, process: int) -> list[Sample]:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(send(load, process))


def run(load: PeerLoad) -> list[Sample]:
    """Send all of it, and wait for the answers."""
    load = msgspec.structs.replace(load, begins=time.perf_counter() + HEAD_START_S)
    with ProcessPoolExecutor(PROCESSES, get_context("fork")) as pool:
        found = pool.map(_process, [load] * PROCESSES, range(PROCESSES))
        return [sample for samples in found for sample in samples]
