"""Front ends as children: one that never says anything is replaced, too. And what they ask each other."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from quire.base.errors import ConfigError
from quire.messages.control import Answered, Ask, Count, Counted, Tally
from quire.server import fronts as module
from quire.server import peers
from quire.server.errors import ApiError
from quire.server.fronts import Child, Fronts
from quire.server.tallies import total
from tests.engine.toy import make_toy
from tests.waiting import HANG_S

pytestmark = pytest.mark.multi

SILENT = ("-c", "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: None); time.sleep(600)")


class Nobody:
    """An owner that is told of those who have died."""

    def __init__(self) -> None:
        self.died = asyncio.Queue[str]()

    def born(self, listener: int, name: str) -> list:
        return []

    def serving(self, index: int, serving: object) -> None:
        raise AssertionError("they never serve")

    def gone(self, name: str) -> None:
        self.died.put_nowait(name)

    def tallies(self) -> list:
        return []


def test_one_that_hangs_before_its_first_sign_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_SIGN_S", 0.5)
    monkeypatch.setattr(module, "STACKS_S", 0.0)

    async def play() -> None:
        owner = Nobody()
        read, write = os.pipe()
        with socket.socket() as listener, os.fdopen(read, "rb"), os.fdopen(write, "wb"):
            fronts = Fronts(owner, [listener], read, SILENT, stall_s=0.2)
            keeping = asyncio.create_task(fronts.keep(0))
            async with asyncio.timeout(2 * HANG_S):
                assert [await owner.died.get() for _ in range(2)] == ["front-0", "front-1"]
            fronts.stopping = True
            fronts.kill()
            async with asyncio.timeout(HANG_S):
                await keeping

    asyncio.run(play())


def test_the_end_waits_for_all_while_some_are_still_kept() -> None:
    async def play() -> None:
        owner = Nobody()
        read, write = os.pipe()
        with socket.socket() as listener, os.fdopen(read, "rb"), os.fdopen(write, "wb"):
            fronts = Fronts(owner, [listener] * 3, read, SILENT, stall_s=600.0)
            keeping = [asyncio.create_task(fronts.keep(index)) for index in range(3)]
            async with asyncio.timeout(2 * HANG_S):
                while len(fronts._children) < 3:
                    await asyncio.sleep(0.01)
                processes = [child.process for child in fronts._children.values()]
                fronts._cannot = "no such model"
                fronts._children[0].kill()
                with pytest.raises(ConfigError, match="no such model"):
                    await asyncio.gather(*keeping)
                fronts.stopping = True
                await fronts.end()
                await asyncio.gather(*keeping[1:])
            assert all(process.returncode is not None for process in processes)

    asyncio.run(play())


def test_an_engine_that_refuses_is_one_sentence_and_leaves_nothing_open(tmp_path: Path) -> None:
    words = ["serve", "--model", str(make_toy(tmp_path / "model")), "--port", "0", "--kv-cache-memory-bytes", "1"]
    command = [sys.executable, "-X", "dev", "-m", "quire.cli", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=4 * HANG_S)
    assert ended.returncode == 2
    assert "does not hold one page" in ended.stderr
    assert "ResourceWarning" not in ended.stderr and "Traceback" not in ended.stderr, ended.stderr


def test_an_answer_is_not_for_whoever_takes_the_asker_s_place() -> None:
    async def play() -> None:
        fronts = Fronts(Nobody(), [], -1, SILENT, stall_s=1.0)
        asker, other, heir = (
            Child(name, mock.Mock(), mock.Mock(), 0.0, served_at=0.0) for name in ("asker", "other", "heir")
        )
        fronts._children = {0: asker, 1: other}
        fronts._ask(0, asker, Ask(7, Count(), Counted(0, [])))
        fronts._buried(0, asker)
        fronts._children[0] = heir
        fronts._answered(1, other, Answered(0, Counted(0, [])))
        assert not heir.channel.send.called and not fronts._exchanges

    asyncio.run(play())


def test_a_supervisor_that_stands_still_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PATIENCE_S", 0.01)
    asked = peers.SupervisedPeers(mock.Mock(), 2)
    for answer in (asked.counted(_counted(1.0)), asked.fetch(b"", "resp_1")):
        with pytest.raises(ApiError) as error:
            asyncio.run(answer)
        assert (error.value.status, error.value.code) == (503, "not_ready")


def _counted(value: float) -> Counted:
    return Counted(0, [Tally("served", "", "counter", [("served_total", {}, value)])])


@pytest.mark.parametrize(("answers", "sum_of_all"), [(True, 130.0), (False, 120.0)])
def test_one_that_dies_while_all_are_counted_counts_once(answers: bool, sum_of_all: float) -> None:
    async def play() -> None:
        fronts = Fronts(Nobody(), [], -1, SILENT, stall_s=1.0)
        asker, dying, other = (
            Child(name, mock.Mock(), mock.Mock(), 0.0, served_at=0.0) for name in ("asker", "dying", "other")
        )
        dying.counted = _counted(20.0).tallies
        fronts._children = {0: asker, 1: dying, 2: other}
        fronts._ask(0, asker, Ask(7, Count(), _counted(1.0)))
        if answers:
            fronts._answered(1, dying, Answered(0, _counted(30.0)))
        fronts._buried(1, dying)
        fronts._answered(2, other, Answered(0, _counted(100.0)))
        (answer,) = asker.channel.send.call_args.args
        (served,) = total([reply.tallies for reply in answer.replies])
        assert served.samples == [("served_total", {}, sum_of_all)]

    asyncio.run(play())
