"""What a rank says when it fails, and to whom."""

import socket

import pytest

from quire.base.errors import ConfigError
from quire.executors.rank import RankProcess
from quire.messages.codec import Codec
from quire.messages.frames import receive, send
from quire.messages.rank import Broken, FromRank, Measure, ToRank

pytestmark = pytest.mark.torch


class Failing(RankProcess):
    """Fails at whatever it is told."""

    def __init__(self, channel: socket.socket, error: Exception) -> None:
        super().__init__(channel)
        self.error = error

    def _handle(self, message: ToRank) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "logged"),
    [(ConfigError("choose a divisor of 4"), "ConfigError", False), (KeyError("k"), "EngineError", True)],
)
def test_only_what_nobody_foresaw_is_logged(error, kind, logged, caplog):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours, Codec(ToRank).encode(Measure()))
        assert Failing(theirs, error).serve() == 1
        frame = receive(ours)
    assert frame is not None
    assert Codec(FromRank).decode(frame) == Broken(kind, str(error))
    assert ("Traceback" in caplog.text) == logged


def test_an_executor_that_has_gone_is_told_nothing():
    ours, theirs = socket.socketpair()
    with theirs:
        send(ours, Codec(ToRank).encode(Measure()))
        ours.close()
        assert Failing(theirs, ConfigError("choose a divisor of 4")).serve() == 1
