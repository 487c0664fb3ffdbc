"""Ranks that hang: of an engine in one's own process nobody but its executor could notice."""

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from unittest import mock

import msgspec
import pytest

from quire.base.errors import EngineDeadError, EngineError
from quire.config.spec import RunSpec
from quire.executors import processes
from quire.executors.processes import ProcessExecutor, Rank
from quire.messages.codec import Codec
from quire.messages.frames import receive, send
from quire.messages.plan import StepPlan
from quire.messages.rank import FromRank, Loaded, Measured, Ready, Verdict
from quire.messages.state import Capacity, Layout
from quire.messages.structured import StructuredOutputsParams
from quire.messages.wire import FAILED
from quire.structured.matcher import Vocabulary

pytestmark = pytest.mark.plain

SPEC = RunSpec(**{**dict.fromkeys(RunSpec.__struct_fields__), "tensor_parallel_size": 2})


@contextlib.contextmanager
def begun(monkeypatch: pytest.MonkeyPatch, measure_s: float = 0.0) -> Iterator[ProcessExecutor]:
    """Over two ranks that load, measure for so long, take pages, and neither say nor hear anything more."""
    theirs: list[socket.socket] = []
    monkeypatch.setattr(processes, "STEP_LIMIT_S", 0.2)
    monkeypatch.setattr(processes, "STOP_TIMEOUT_S", 0.1)

    def serve(channel: socket.socket) -> None:
        codec = Codec(FromRank)
        for answer in (Loaded({}), Measured(Capacity(1, [])), Ready()):
            receive(channel)
            time.sleep(measure_s if isinstance(answer, Measured) else 0)
            send(channel, codec.encode(answer))

    def spawn(index: int) -> Rank:
        ours, its = socket.socketpair()
        theirs.append(its)
        threading.Thread(target=serve, args=(its,), daemon=True).start()
        return Rank(index, subprocess.Popen(["sleep", "60"]), socket.socket(), ours)

    monkeypatch.setattr(processes, "_spawn", spawn)
    executor = ProcessExecutor(SPEC)
    executor.load(lambda done, total: None)
    executor.measure()
    executor.allocate(Layout([], 16))
    yield executor
    executor.stop()
    for each in theirs:
        each.close()


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessExecutor]:
    with begun(monkeypatch) as executor:
        yield executor


@pytest.mark.parametrize("question", ["wait", "result"])
def test_ranks_that_hang_in_a_step_are_noticed(executor: ProcessExecutor, question: str) -> None:
    pending = executor.step(StepPlan(0, [], [], []))
    with pytest.raises(EngineDeadError, match="rank 0 has said nothing"):
        getattr(pending, question)()


def test_a_rank_that_takes_nothing_hangs_and_has_not_ended(executor: ProcessExecutor) -> None:
    with pytest.raises(EngineDeadError, match="rank 0 has said nothing"):
        while True:
            executor.step(StepPlan(0, [], [], []))


def test_a_step_may_take_three_times_what_the_largest_one_took(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with begun(monkeypatch, measure_s=0.2) as executor:
        most_s = 3 * (time.monotonic() - began)
        assert all(0.6 <= (rank.socket.gettimeout() or 0) < most_s for rank in executor._ranks)


def test_a_fault_of_a_rank_is_not_held_against_a_grammar() -> None:
    ours, theirs = socket.socketpair()
    executor = ProcessExecutor(SPEC)
    executor._ranks = [Rank(0, mock.Mock(), ours, socket.socket())]
    with ours, theirs, executor._ranks[0].socket:
        send(theirs, msgspec.msgpack.encode(Verdict("no room", FAILED)))
        with pytest.raises(EngineError, match="rank 0: no room"):
            executor.prepare(StructuredOutputsParams(regex="a"), Vocabulary("tokenizer.json", 10, (0,)), [])
