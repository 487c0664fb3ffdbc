"""A fault of the engine's own (no process, no memory) is not held against a grammar."""

import select
from types import SimpleNamespace
from unittest import mock

import pytest

from quire.base.errors import EngineError, RequestError
from quire.engine.grammars import GrammarDesk
from quire.messages.params import SamplingParams
from quire.messages.request import Request
from quire.messages.structured import StructuredOutputsParams
from quire.messages.wire import FAILED, Refused
from quire.structured import court
from quire.structured.matcher import Vocabulary

pytestmark = pytest.mark.plain


def asked(desk: GrammarDesk, name: str) -> list[Refused]:
    """What becomes of a request with the one grammar."""
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a+"))
    desk.want(Request(id=name, token_ids=[1], params=params))
    select.select([desk.descriptor], [], [], 10)
    return desk.collect()


def test_a_judge_that_cannot_be_begun_is_tried_again(tmp_path) -> None:
    scheduler = mock.Mock()
    desk = GrammarDesk(mock.Mock(), scheduler, Vocabulary(str(tmp_path), 10, (0,)))
    try:
        with mock.patch.object(court.subprocess, "Popen", side_effect=OSError("no more processes")):
            (refused,) = asked(desk, "first")
        assert (refused.id, refused.code) == ("first", FAILED)
        with mock.patch.object(desk, "_court", SimpleNamespace(check=lambda wanted: None)):
            assert asked(desk, "second") == []
        assert [call.args for call in scheduler.abort.call_args_list] == [("first",)]
    finally:
        desk.close()


def test_a_fault_of_the_engine_is_not_told_as_the_requests() -> None:
    assert isinstance(Refused("mine", "no judge", None, FAILED).error, EngineError)
    error = Refused("mine", "no such grammar", "regex", "invalid_schema").error
    assert isinstance(error, RequestError)
    assert (error.message, error.param, error.code) == ("no such grammar", "regex", "invalid_schema")
