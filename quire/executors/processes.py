"""The executor for several devices of one host: one process per rank, each on a socket pair.

A rank is `python -m quire.executors.rank`, so callers need no `__main__` guard. Frames are length-prefixed msgpack; the
socket's end is the rank's end, whichever side dies first.
"""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from quire.base.errors import EngineDeadError, QuireError, TransportError
from quire.base.interpreter import python
from quire.base.registry import load
from quire.config import environ
from quire.config.spec import RunSpec
from quire.executors.base import PATIENCE, Pending, Progress
from quire.messages.codec import Codec
from quire.messages.frames import pair_for_child, receive, send
from quire.messages.plan import StepPlan, StepResult
from quire.messages.rank import (
    Allocate,
    Begin,
    Broken,
    FromRank,
    Loaded,
    Loading,
    Measure,
    Measured,
    Prepare,
    Ready,
    Result,
    Run,
    ToRank,
    Verdict,
)
from quire.messages.state import Capacity, Layout
from quire.messages.structured import StructuredOutputsParams
from quire.structured.matcher import Vocabulary

STOP_TIMEOUT_S = 5.0

STEP_LIMIT_S = 310.0
"""Whoever takes longer for a step hangs, unless the largest one took long when it was measured. A little more than
ranks wait for each other: one that waits from the step's beginning gives up first, and says so."""

TIED = "tied"
"""Tells a rank to end with the thread that has started it, even if it hangs in a collective."""

Answer = TypeVar("Answer", Loaded, Measured, Ready, Result)


@dataclass(frozen=True, slots=True)
class Rank:
    """A rank's process and this side of its sockets: one for steps, one for what runs beside them."""

    index: int
    process: subprocess.Popen[bytes]
    side: socket.socket
    socket: socket.socket


class ProcessExecutor:
    """Ranks in processes of their own."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._codec: Codec[FromRank] = Codec(FromRank)
        self._ranks: list[Rank] = []
        self._folder = ""
        self._measured_s = 0.0

    def load(self, progress: Progress) -> dict[str, str]:
        """Start the ranks and load the model on each."""
        size = self._spec.tensor_parallel_size
        self._folder = tempfile.mkdtemp(prefix="quire-")
        try:
            for index in range(size):
                # One by one: when the next cannot be begun, those before it must be ended.
                self._ranks.append(_spawn(index))
            for rank in self._ranks:
                self._tell(rank, Begin(self._spec, rank.index, size, f"file://{self._folder}/rendezvous"))
            loaded = [self._expect(rank, Loaded, progress) for rank in self._ranks]
        except BaseException:
            self.stop()
            raise
        return loaded[0].choices

    def measure(self) -> Capacity:
        """Run the largest step on all ranks at once."""
        began = time.monotonic()
        for rank in self._ranks:
            self._tell(rank, Measure())
        measured = [self._expect(rank, Measured).capacity for rank in self._ranks]
        self._measured_s = time.monotonic() - began
        return min(measured, key=lambda capacity: capacity.free_bytes)

    def allocate(self, layout: Layout) -> None:
        """Take the same pages on every rank."""
        for rank in self._ranks:
            self._tell(rank, Allocate(layout))
        for rank in self._ranks:
            self._expect(rank, Ready)
            rank.socket.settimeout(max(STEP_LIMIT_S, PATIENCE * self._measured_s))

    def step(self, plan: StepPlan) -> Pending:
        """Send the plan to every rank: the same bytes."""
        for rank in self._ranks:
            self._tell(rank, Run(plan))
        return _Awaited(self)

    def prepare(self, wanted: StructuredOutputsParams | None, vocabulary: Vocabulary, unused: list[str]) -> None:
        """Let rank 0 compile a grammar, beside its steps."""
        rank = self._ranks[0]
        question = Prepare(wanted, vocabulary.tokenizer, vocabulary.size, vocabulary.eos, unused)
        try:
            send(rank.side, msgspec.msgpack.encode(question))
            frame = receive(rank.side)
        except OSError:
            frame = None
        if frame is None:
            raise _ended(rank)
        msgspec.msgpack.decode(frame, type=Verdict).check(f"rank {rank.index}: ")

    def stop(self) -> None:
        """End the ranks: closing a socket asks for it, a signal follows."""
        ranks, self._ranks = self._ranks, []
        for rank in ranks:
            rank.socket.close()
            rank.side.close()
        for rank in ranks:
            try:
                rank.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                rank.process.kill()
                rank.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def await_news(self) -> None:
        """Wait until the sampling rank has said something, or has ended."""
        rank = self._ranks[0]
        with _in_time(rank), contextlib.suppress(ConnectionResetError):
            rank.socket.recv(1, socket.MSG_PEEK)

    def next_result(self) -> StepResult:
        """The oldest step's result, from the sampling rank."""
        return self._expect(self._ranks[0], Result).result

    def _tell(self, rank: Rank, message: ToRank) -> None:
        try:
            with _in_time(rank):
                send(rank.socket, self._codec.encode(message))
        except OSError as error:
            raise _ended(rank) from error

    def _expect(self, rank: Rank, kind: type[Answer], progress: Progress | None = None) -> Answer:
        while isinstance(answer := self._heard(rank), Loading):
            if progress is not None:
                progress(answer.done, answer.total)
        if isinstance(answer, Broken):
            error: type[QuireError] = load(f"quire.base.errors:{answer.kind}")
            raise error(f"rank {rank.index}: {answer.message}")
        if not isinstance(answer, kind):
            raise TransportError(f"rank {rank.index} answered {type(answer).__name__} instead of {kind.__name__}")
        return answer

    def _heard(self, rank: Rank) -> FromRank:
        with _in_time(rank):
            frame = receive(rank.socket)
        if frame is None:
            raise _ended(rank)
        return self._codec.decode(frame)


@dataclass(frozen=True, slots=True)
class _Awaited:
    """A step that rank processes compute; results come in the order of the plans."""

    executor: ProcessExecutor

    def wait(self) -> None:
        self.executor.await_news()

    def result(self) -> StepResult:
        return self.executor.next_result()


def _spawn(index: int) -> Rank:
    # The kernel watches the thread that starts a process: of a core that is the main one. `LLM` may be anywhere.
    tied = [TIED] if threading.current_thread() is threading.main_thread() else []
    with pair_for_child() as (ours, theirs), pair_for_child() as (side, their_side):
        ends = [str(theirs.fileno()), str(their_side.fileno())]
        process = subprocess.Popen(
            [*python(), "-m", "quire.executors.rank", *ends, *tied],
            pass_fds=[theirs.fileno(), their_side.fileno()],
            stdin=subprocess.DEVNULL,
            env=environ.snapshot() | environ.computing(),
        )
    return Rank(index, process, side, ours)


@contextlib.contextmanager
def _in_time(rank: Rank) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        limit_s = rank.socket.gettimeout() or 0.0
        raise EngineDeadError(
            f"rank {rank.index} has said nothing for {limit_s:g} s: it hangs, or one that it waits for does"
        ) from error


def _ended(rank: Rank) -> EngineDeadError:
    code = rank.process.poll()
    return EngineDeadError(f"rank {rank.index} has ended" + ("" if code is None else f" with exit code {code}"))
