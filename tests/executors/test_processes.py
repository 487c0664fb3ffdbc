"""Ranks that hang: of an engine in one's own process nobody but its executor could notice."""

import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from quire.base.errors import EngineDeadError
from quire.config.spec import RunSpec
from quire.executors import processes
from quire.executors.processes import ProcessExecutor, Rank
from quire.messages.codec import Codec
from quire.messages.frames import receive, send
from quire.messages.plan import StepPlan
from quire.messages.rank import FromRank, Loaded, Ready
from quire.messages.state import Layout

pytestmark = pytest.mark.plain

SPEC = RunSpec(**{**dict.fromkeys(RunSpec.__struct_fields__), "tensor_parallel_size": 2})


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessExecutor]:
    """Over two ranks that load, take pages, and say nothing more."""
    monkeypatch.setattr(processes, "STEP_LIMIT_S", 0.2)
    monkeypatch.setattr(processes, "STOP_TIMEOUT_S", 0.1)

    def serve(channel: socket.socket) -> None:
        codec = Codec(FromRank)
        with channel:
            for answer in (Loaded({}), Ready()):
                receive(channel)
                send(channel, codec.encode(answer))
            while receive(channel) is not None:
                pass

    def spawn(index: int) -> Rank:
        ours, theirs = socket.socketpair()
        threading.Thread(target=serve, args=(theirs,), daemon=True).start()
        return Rank(index, subprocess.Popen(["sleep", "60"]), socket.socket(), ours)

    monkeypatch.setattr(processes, "_spawn", spawn)
    executor = ProcessExecutor(SPEC)
    executor.load(lambda done, total: None)
    executor.allocate(Layout([], 16))
    yield executor
    executor.stop()


@pytest.mark.parametrize("question", ["wait", "result"])
def test_ranks_that_hang_in_a_step_are_noticed(executor: ProcessExecutor, question: str) -> None:
    pending = executor.step(StepPlan(0, [], [], []))
    with pytest.raises(EngineDeadError, match="rank 0 has said nothing"):
        getattr(pending, question)()
