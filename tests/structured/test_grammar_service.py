"""A fault of the engine's own (no process, no memory) is not held against a grammar."""

import select
import threading
from types import SimpleNamespace
from unittest import mock

import pytest

from quire.base.errors import EngineError, RequestError
from quire.engine.core import EngineCore
from quire.engine.grammars import GrammarService
from quire.messages.params import SamplingParams
from quire.messages.request import Request
from quire.messages.structured import FIELD, StructuredOutputsParams
from quire.messages.wire import FAILED, Refused
from quire.structured import checker
from quire.structured.matcher import Vocabulary

pytestmark = pytest.mark.plain

PARAMS = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a+"))


def asked(service: GrammarService, name: str) -> list[Refused]:
    """What becomes of a request with the one grammar."""
    service.want(Request(id=name, token_ids=[1], params=PARAMS))
    select.select([service.descriptor], [], [], 10)
    return service.collect()


def test_a_checker_that_cannot_be_begun_is_tried_again(tmp_path) -> None:
    scheduler = mock.Mock()
    service = GrammarService(mock.Mock(), scheduler, Vocabulary(str(tmp_path), 10, (0,)))
    try:
        with mock.patch.object(checker.subprocess, "Popen", side_effect=OSError("no more processes")):
            (refused,) = asked(service, "first")
        assert (refused.id, refused.code) == ("first", FAILED)
        with mock.patch.object(service, "_checker", SimpleNamespace(check=lambda wanted: None)):
            assert asked(service, "second") == []
        assert [call.args for call in scheduler.abort.call_args_list] == [("first",)]
    finally:
        service.close()


def test_a_thread_that_cannot_be_begun_is_tried_again() -> None:
    service = GrammarService(mock.Mock(), mock.Mock(), Vocabulary("", 10, (0,)))
    with mock.patch.object(service, "_checker", mock.Mock()):
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            (refused,) = asked(service, "first")
        assert (refused.id, refused.code, service.busy) == ("first", FAILED, False)
        assert (asked(service, "second"), service.busy) == ([], False)
        service.close()


def test_a_fault_of_the_engine_is_not_told_as_the_requests() -> None:
    assert isinstance(Refused("mine", "no checker", None, FAILED).error, EngineError)
    error = Refused("mine", "no such grammar", "regex", "invalid_schema").error
    assert isinstance(error, RequestError)
    assert (error.message, error.param, error.code) == ("no such grammar", "regex", "invalid_schema")


def test_nothing_is_compiled_for_a_request_that_can_never_fit(tmp_path) -> None:
    scheduler = mock.Mock(**{"add.side_effect": RequestError("too long", "max_tokens", "kv_capacity")})
    service = GrammarService(mock.Mock(), scheduler, Vocabulary(str(tmp_path), 10, (0,)))
    core = EngineCore(mock.Mock(), scheduler, service, mock.Mock(), 1)
    with pytest.raises(RequestError, match="too long"):
        core.add(Request(id="long", token_ids=[1], params=PARAMS))
    assert not service.busy
    core.abandon()


def test_a_grammar_that_is_known_to_be_bad_is_refused_at_once_and_leaves_nothing() -> None:
    scheduler = mock.Mock()
    service = GrammarService(mock.Mock(), scheduler, Vocabulary("", 10, (0,)))
    core = EngineCore(mock.Mock(), scheduler, service, mock.Mock(), 1)
    bad = RequestError("no such rule", FIELD, "invalid_schema")
    with mock.patch.object(service, "_checker", mock.Mock(**{"check.side_effect": bad})):
        (refused,) = asked(service, "first")
        assert (refused.id, refused.code) == ("first", "invalid_schema")
        with pytest.raises(RequestError, match="no such rule"):
            core.add(Request(id="second", token_ids=[1], params=PARAMS))
        core.abandon()
    scheduler.add.assert_not_called()
