"""Sends a job's sessions when they are due, in this process or in several, and gathers how they went.

As `python -m quire.cli.load.drive` it is one of several senders: a job on standard input, samples on standard output.
"""

import asyncio
import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from quire.base.event_loop import loop_factory
from quire.base.interpreter import python
from quire.cli.address import Address
from quire.cli.load.arrivals import arrivals
from quire.cli.load.client import Client, Sample
from quire.cli.load.traffic import Session, Traffic, sessions

HEAD_START_S = 0.2
"""Between the making of the plan and the first request."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a sender must know.

    Attributes:
        rate: sessions a second, or None to send all at once.
        burstiness: see `arrivals`.
        concurrency: most sessions at a time, or None.
        parts: senders that share the job, of which this is number `part`.
        begins: `time.perf_counter` of the first arrival; the clock is the same in all processes of a machine.
    """

    url: str
    model: str
    traffic: Traffic
    key: str | None = None
    rate: float | None = None
    burstiness: float = 1.0
    concurrency: int | None = None
    part: int = 0
    parts: int = 1
    begins: float = 0.0


async def drive(job: Job, tick: Callable[[], None] = lambda: None) -> list[Sample]:
    """Run this sender's share of `job`; one sample per turn. `tick` is called after each session."""
    asked = sessions(job.traffic)
    times = arrivals(len(asked), job.rate, job.burstiness, job.traffic.seed)
    mine = list(enumerate(zip(asked, times, strict=True)))[job.part :: job.parts]
    keep_text = job.traffic.kind in ("multiturn", "structured")
    client = Client(Address.of(job.url, "--base-url"), job.key, keep_text)
    places = asyncio.Semaphore(max(1, job.concurrency // job.parts) if job.concurrency else len(mine) + 1)

    async def one(number: int, session: Session, arrival: float) -> list[Sample]:
        due = job.begins + (arrival if session.due is None else session.due)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        async with places:
            # With a limit on what is open at a time the load is closed: waiting for a place is not the server's doing.
            samples = _converse(client, job, session, due if job.concurrency is None else time.perf_counter())
            found = [dataclasses.replace(sample, session=number) for sample in await samples]
        tick()
        return found

    found = await asyncio.gather(*(one(number, session, arrival) for number, (session, arrival) in mine))
    client.close()
    return [sample for samples in found for sample in samples]


async def _converse(client: Client, job: Job, session: Session, due: float) -> list[Sample]:
    history: list[dict[str, Any]] = []
    samples: list[Sample] = []
    for turn, body in enumerate(session.bodies):
        if turn:
            await asyncio.sleep(job.traffic.pause_s)
            due = time.perf_counter()
        sample = Sample(due, turn=turn)
        samples.append(sample)
        chat = {}
        if session.words:
            history.append({"role": "user", "content": session.words[turn]})
            chat = {"messages": history}
        await client.stream(session.path, {"model": job.model, **body, **chat}, sample)
        if sample.error is not None:
            break
        history.append({"role": "assistant", "content": sample.text})
    return samples


async def spread(job: Job, processes: int) -> list[Sample]:
    """Run `job` in so many processes, each with its share."""
    job = msgspec.structs.replace(job, begins=time.perf_counter() + HEAD_START_S + 0.5 * processes, parts=processes)
    found = await asyncio.gather(*(_sender(msgspec.structs.replace(job, part=part)) for part in range(processes)))
    return [sample for samples in found for sample in samples]


async def _sender(job: Job) -> list[Sample]:
    pipe = asyncio.subprocess.PIPE
    sender = await asyncio.create_subprocess_exec(*python(), "-m", "quire.cli.load.drive", stdin=pipe, stdout=pipe)
    said, _ = await sender.communicate(msgspec.json.encode(job))
    return msgspec.json.decode(said, type=list[Sample])


def run(job: Job, processes: int = 1, tick: Callable[[], None] = lambda: None) -> list[Sample]:
    """Send all of `job` and wait for the answers."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        if processes > 1:
            return runner.run(spread(job, processes))
        begins = job.begins or time.perf_counter() + HEAD_START_S
        return runner.run(drive(msgspec.structs.replace(job, begins=begins), tick))


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))))
