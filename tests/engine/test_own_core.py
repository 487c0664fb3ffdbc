"""A core that nobody can talk to is not left running, and none leaves a file behind."""

import asyncio
from pathlib import Path
from unittest import mock

import pytest

from quire.base.errors import EngineError
from quire.config.sources import engine_config
from quire.engine.launch import CoreProcess, CoreSetup
from quire.engine.own_core import _first_facts, start_core
from quire.engine.pulse import Pulse
from quire.messages.wire import Failed
from tests.config import facts
from tests.waiting import HANG_S

pytestmark = pytest.mark.plain


@pytest.mark.parametrize("broken", ["made", "closed"])
def test_a_core_is_ended_whatever_fails(broken: str, tmp_path: Path) -> None:
    process, client = mock.AsyncMock(), mock.Mock()
    client.receive = mock.AsyncMock(side_effect=OSError("no memory"))
    client.close.side_effect = OSError("no memory")
    made = mock.Mock(return_value=client, side_effect=OSError("no memory") if broken == "made" else None)
    with (
        mock.patch("quire.engine.own_core.private_folder", lambda: tmp_path),  # which a real process would remove
        mock.patch("quire.engine.own_core.CoreProcess.start", mock.AsyncMock(return_value=process)),
        mock.patch("quire.engine.own_core.CoreClient", made),
        pytest.raises(OSError, match="no memory"),
    ):
        asyncio.run(start_core(engine_config(model="toy"), facts.model(), ()))
    process.stop.assert_awaited_once()


SPEAKS = """
from quire.engine.process import _launch
from quire.engine.pulse import Pulse
Pulse(_launch(0).pulse).last_words("no room for weights")
"""
"""A core that says why it cannot start, and does not wait until somebody hears it."""


def test_what_a_core_has_said_last_is_told_although_it_has_gone() -> None:
    with pytest.raises(EngineError, match="no room for weights"):
        asyncio.run(start_core(engine_config(model="toy"), facts.model(), ("-c", SPEAKS)))


def test_what_a_core_has_sent_is_told_although_its_end_is_known_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async def receive() -> Failed:
        for _ in range(20):
            await asyncio.sleep(0)
        return Failed("no room for weights")

    monkeypatch.setattr("quire.engine.own_core.ON_ITS_WAY_S", HANG_S)
    client, process = mock.Mock(receive=receive), mock.Mock(ended=mock.AsyncMock(return_value="it ended"))
    with pytest.raises(EngineError, match="no room for weights"):
        asyncio.run(_first_facts(client, process, Pulse()))


WRITES = "import os, signal, tempfile; tempfile.mkstemp(); os.kill(os.getpid(), signal.SIGKILL)"
"""A core that dies at once, and has no time to clear up."""


def test_what_a_core_leaves_is_removed_with_it(tmp_path: Path) -> None:
    async def live() -> int:
        config, model = engine_config(model="toy"), facts.model()
        core = await CoreProcess.start(config, model, ("-c", WRITES), CoreSetup(tmp_path, "core-1"))
        await core.ended()
        left = len(list(tmp_path.glob("core-1/tmp*")))
        await core.stop(0)
        return left

    assert asyncio.run(live()) == 1
    assert not list(tmp_path.iterdir())


def test_a_start_that_is_given_up_leaves_no_folder(tmp_path: Path) -> None:
    config, model = engine_config(model="toy"), facts.model()
    given_up = mock.patch("asyncio.create_subprocess_exec", mock.AsyncMock(side_effect=asyncio.CancelledError))
    with given_up, pytest.raises(asyncio.CancelledError):
        asyncio.run(CoreProcess.start(config, model, (), CoreSetup(tmp_path, "core-1")))
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "c1").mkdir()
    config, model = engine_config(model="toy"), facts.model()
    with pytest.raises(FileExistsError):
        asyncio.run(CoreProcess.start(config, model, ("-c", WRITES), CoreSetup(tmp_path, "c1")))
    assert (tmp_path / "c1").is_dir()
