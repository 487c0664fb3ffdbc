"""What a rank says when it fails, and to whom."""

import socket
import threading
from types import SimpleNamespace
from unittest import mock

import msgspec
import pytest

from quire.base.errors import ConfigError, RequestError
from quire.executors.rank import RankProcess
from quire.messages.codec import Codec
from quire.messages.frames import receive, send
from quire.messages.rank import Broken, FromRank, Measure, Prepare, ToRank, Verdict
from quire.messages.structured import StructuredOutputsParams
from quire.messages.wire import FAILED
from tests.waiting import HANG_S

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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_grammar_that_nobody_foresaw_harms_no_other_one(caplog):
    ours, theirs = socket.socketpair()
    rank = RankProcess(mock.Mock())
    errors = [
        MemoryError("no room"),
        RequestError("no such rule", "grammar", "invalid_schema"),
        None,
        None,
        KeyboardInterrupt,
    ]
    rank.runner = SimpleNamespace(grammars=mock.Mock(prepare=mock.Mock(side_effect=errors)))
    thread = threading.Thread(target=rank.serve_side, args=(theirs,), daemon=True)
    thread.start()
    question = msgspec.msgpack.encode(Prepare(StructuredOutputsParams(regex="a"), "tokenizer.json", 10, (0,)))
    ours.settimeout(HANG_S)
    with ours:
        for answer in (Verdict("no room", FAILED), Verdict("no such rule", "invalid_schema"), Verdict()):
            send(ours, question)
            assert msgspec.msgpack.decode(receive(ours), type=Verdict) == answer
        assert caplog.text.count("Traceback") == 1
        send(ours, msgspec.msgpack.encode(Prepare(None, "tokenizer.json", 10, (0,), ["key"])))
        assert msgspec.msgpack.decode(receive(ours), type=Verdict) == Verdict()
        assert [call.args[::2] for call in rank.runner.grammars.prepare.call_args_list][3] == (None, ["key"])
        send(ours, question)
        assert receive(ours) is None  # the thread's death is heard, and no answer is waited for in vain
    thread.join(HANG_S)
