"""`TextPool`: the text workers of one front end. A worker that takes too long, or dies, is replaced by another.

Long jobs never take the last worker, so that short ones need not wait for them.
"""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from quire.base.errors import EngineError, TransportError
from quire.base.interpreter import python
from quire.base.logging import get_logger
from quire.base.tasks import Tasks
from quire.config import environ
from quire.messages.frames import pair_for_child
from quire.messages.text import (
    INTEGERS,
    Answer,
    Decode,
    Encode,
    EncodePairs,
    Failed,
    FromWorker,
    Job,
    Parse,
    Ready,
    Refused,
    Render,
    Setup,
)
from quire.server.channel import Channel
from quire.server.errors import ApiError, unavailable

log = get_logger(__name__)

WORKERS = 2
LONG_JOB_CHARS = 200_000
"""Of text (or bytes, or six times as many token ids): from here on a job takes tens of milliseconds."""

RENDER_S = 20.0
"""Whoever renders for longer is killed: a worker ends itself after far less processor time, unless it was stopped. What
waits for it meanwhile (PATIENCE_S) lives to see the next one begin."""

JOB_S = 120.0
PATIENCE_S = 30.0
"""How long a job waits for a worker."""

START_S = 60.0
"""How long a worker may take to be ready."""

AGAIN_S = 1.0

T = TypeVar("T")
Places = contextlib.AbstractAsyncContextManager[None]


class Worker:
    """One process, and the channel to it."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel[FromWorker]) -> None:
        self._process = process
        self._channel = channel

    @classmethod
    async def start(cls, setup: Setup) -> "Worker":
        """One that is ready. Raises EngineError."""
        with pair_for_child() as (ours, theirs):
            process = await asyncio.create_subprocess_exec(
                *python(),
                *("-m", "quire.server.text.worker", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env=environ.snapshot() | {"RAYON_NUM_THREADS": "1"},
            )
        worker = cls(process, await Channel.open(ours, FromWorker))
        said = None
        try:
            async with asyncio.timeout(START_S):
                said = await worker.ask(setup)
        except TimeoutError:
            log.error("a text worker is not ready after %g s", START_S)
        finally:
            if said is None:
                await worker.end()
        if said is None:
            raise EngineError("a text worker has ended before it was ready; its log is above")
        return worker

    async def ask(self, message: Setup | Job) -> FromWorker | None:
        """The answer; None if the process has ended instead, or speaks out of turn."""
        try:
            self._channel.send(message)
            return await self._channel.receive()
        except OverflowError:
            # In what a client has sent; nothing of it has left this process.
            return Refused(INTEGERS, None, "invalid_json")
        except TransportError:
            return None

    async def end(self) -> int:
        """Kill the process, if it has not ended; how it did."""
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return await self._process.wait()


class TextPool:
    """The text workers of one front end; one that takes too long, or dies, is replaced.

    Args:
        setup: what workers start from.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._workers: set[Worker] = set()
        # The one that was idle last is the warmest.
        self._idle: asyncio.LifoQueue[Worker] = asyncio.LifoQueue()
        self._long = asyncio.Semaphore(WORKERS - 1)
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        """Workers begin to load; jobs wait for the first that is ready."""
        for _ in range(WORKERS):
            self._spawn(self._hire())
        return self

    async def __aexit__(self, *how: object) -> None:
        """End all workers."""
        await asyncio.gather(self._tasks.cancel(), *(worker.end() for worker in self._workers), return_exceptions=True)

    async def run(self, job: Job) -> Answer | Refused | Failed:
        """Do a job. Raises ApiError 503 if no worker has time for it."""
        places = self._long if _chars(job) > LONG_JOB_CHARS else contextlib.nullcontext()
        worker = await self._take(places)
        # A worker finishes what it has begun, whether anybody waits for it or not.
        return await asyncio.shield(self._spawn(self._work(worker, job, places)))

    async def _take(self, places: Places) -> Worker:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await places.__aenter__()
                try:
                    return await self._idle.get()
                except BaseException:
                    await places.__aexit__(None, None, None)
                    raise
        except TimeoutError:
            raise _full() from None

    async def _work(self, worker: Worker, job: Job, places: Places) -> Answer | Refused | Failed:
        try:
            # Who dies for another reason than the job may have been dead already: then the next one does it.
            for _ in range(WORKERS + 1):
                answer, late = await self._asked(worker, job)
                if answer is not None:
                    self._idle.put_nowait(worker)
                    return answer
                late |= await worker.end() == -signal.SIGPROF
                self._workers.discard(worker)
                self._spawn(self._hire())
                log.warning("a text worker was stopped, or has died; another one begins")
                if late:
                    break
                try:
                    worker = await asyncio.wait_for(self._idle.get(), PATIENCE_S)
                except TimeoutError:
                    raise _full() from None
            else:
                self._idle.put_nowait(worker)
            return _stopped(job)
        finally:
            await places.__aexit__(None, None, None)

    async def _asked(self, worker: Worker, job: Job) -> tuple[Answer | Refused | Failed | None, bool]:
        """The answer, None if there was none; and whether it took too long."""
        try:
            async with asyncio.timeout(RENDER_S if isinstance(job, Render) else JOB_S):
                answer = await worker.ask(job)
        except TimeoutError:
            return None, True
        return None if isinstance(answer, Ready) else answer, False

    async def _hire(self) -> None:
        while True:
            try:
                worker = await Worker.start(self._setup)
            except (EngineError, OSError) as error:
                log.error("%s; tried again in %g s", error, AGAIN_S)
                await asyncio.sleep(AGAIN_S)
            else:
                self._workers.add(worker)
                self._idle.put_nowait(worker)
                return

    def _spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        return self._tasks.keep(asyncio.create_task(work))


def _full() -> ApiError:
    return unavailable("Too many texts are waiting to be read; try again later.", "queue_full")


def _chars(job: Job) -> int:
    """About how long a job is."""
    match job:
        case Parse():
            return sum(map(len, job.parts))
        case Encode():
            return sum(map(len, job.texts))
        case EncodePairs():
            return sum(len(first) + len(second) for first, second in job.pairs)
        case Decode():
            return 6 * len(job.ids)
        case Render():
            return sum(map(_chars_of, job.messages))


def _chars_of(message: dict[str, Any]) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return sum(len(part["text"]) for part in parts)


def _stopped(job: Job) -> Refused | Failed:
    if isinstance(job, Render):
        return Refused(
            "chat_template: rendering these messages took too much time or memory and was stopped; shorten them.",
            "chat_template",
            "template_timeout",
        )
    return Failed("The text could not be worked on: it took too much time or memory.")
