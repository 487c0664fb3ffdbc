"""The core's process: how it begins, how it ends when its engine fails, and when it cannot listen."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from quire.base.errors import EngineDeadError, EngineError
from quire.config.sources import engine_config
from quire.engine import process
from quire.engine.core import EngineCore
from quire.engine.launch import LENGTH_BYTES, Launch
from quire.engine.process import Server
from quire.engine.pulse import Pulse
from tests.config import facts
from tests.waiting import HANG_S

pytestmark = pytest.mark.plain

read_launch = process._launch


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """What a core starts from that changes nothing of the process of the tests."""
    made = Launch(engine_config(model="toy"), facts.model(), f"ipc://{tmp_path}/{'x' * 108}")
    names = ("die_with_parent", "faulthandler", "setup", "write_aside", "keep_what_lives", "sys")
    with (
        mock.patch.multiple(process, **dict.fromkeys(names, mock.DEFAULT)),
        mock.patch.object(process, "_launch", lambda descriptor: made),
    ):
        yield made


def test_a_core_reads_its_launch_message_and_nothing_that_comes_after_it(launch: Launch) -> None:
    frame = msgspec.json.encode(msgspec.structs.replace(launch, secret="s" * 100_000))  # more than a pipe holds
    ours, theirs = os.pipe()
    writer = threading.Thread(target=os.write, args=(theirs, len(frame).to_bytes(LENGTH_BYTES) + frame + b"news"))
    writer.start()
    assert len(read_launch(ours).secret) == 100_000
    writer.join(HANG_S)
    assert os.read(ours, 10) == b"news"
    os.write(theirs, b"by hand")
    os.close(theirs)
    with pytest.raises(SystemExit, match="by hand"):
        read_launch(ours)
    os.close(ours)


def test_a_core_whose_ranks_hang_does_not_wait_for_its_other_steps(launch: Launch) -> None:
    executor, pending = mock.Mock(), mock.Mock()
    core = EngineCore(executor, mock.Mock(), mock.Mock(), mock.Mock(), 2)
    core.in_flight.append((mock.Mock(), pending, 0.0))
    server = mock.Mock(**{"run.side_effect": EngineDeadError("rank 0 hangs")})
    with (
        mock.patch.object(process, "begin", return_value=core),
        mock.patch.object(process, "Server", lambda *_: server),
    ):
        assert process.main() == 1
    server.fail.assert_called_once()
    executor.stop.assert_called()
    pending.result.assert_not_called()


def test_a_core_that_cannot_listen_says_what_helps(launch: Launch) -> None:
    pulse = Pulse()
    with pytest.raises(EngineError, match="TMPDIR"):
        Server(launch, 0, pulse)
    with mock.patch.object(process, "Pulse", lambda descriptor: pulse):
        assert process.main() == 2
    assert "TMPDIR" in pulse.said
