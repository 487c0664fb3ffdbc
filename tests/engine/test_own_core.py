"""A core that nobody can talk to is not left running."""

import asyncio
from unittest import mock

import pytest

from quire.config.sources import engine_config
from quire.engine.own_core import start_core
from tests.config import facts

pytestmark = pytest.mark.plain


@pytest.mark.parametrize("broken", ["made", "closed"])
def test_a_core_is_ended_whatever_fails(broken: str) -> None:
    process, client = mock.AsyncMock(), mock.Mock()
    client.receive = mock.AsyncMock(side_effect=OSError("no memory"))
    client.close.side_effect = OSError("no memory")
    made = mock.Mock(return_value=client, side_effect=OSError("no memory") if broken == "made" else None)
    with (
        mock.patch("quire.engine.own_core.CoreProcess.start", mock.AsyncMock(return_value=process)),
        mock.patch("quire.engine.own_core.CoreClient", made),
        pytest.raises(OSError, match="no memory"),
    ):
        asyncio.run(start_core(engine_config(model="toy"), facts.model(), ()))
    process.stop.assert_awaited_once()
