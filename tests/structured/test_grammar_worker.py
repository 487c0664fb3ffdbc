"""The thread that compiles grammars: in which order, and a fault of the engine's own is not held against a grammar."""

import threading
from types import SimpleNamespace
from unittest import mock

import pytest

from quire.base.errors import EngineError, RequestError
from quire.engine import grammar_worker
from quire.engine.grammar_worker import GrammarWorker, PendingGrammar
from quire.messages.structured import FIELD, StructuredOutputsParams
from quire.messages.wire import FAILED, Refused
from quire.structured import checker
from quire.structured.matcher import Vocabulary
from tests.waiting import HANG_S, wait_for

pytestmark = pytest.mark.plain


def pending(number: int, room: bool = True) -> PendingGrammar:
    return PendingGrammar(number, f"key {number}", StructuredOutputsParams(regex=f"a{{{number}}}"), room)


def seen_to(worker: GrammarWorker, grammar: PendingGrammar) -> PendingGrammar:
    worker.submit(grammar)
    worker.wait()
    (done,) = worker.collect()
    assert done is grammar
    return grammar


@pytest.fixture
def executor():
    return mock.Mock()


@pytest.fixture
def worker(executor):
    made = GrammarWorker(executor, Vocabulary("", 10, (0,)))
    yield made
    made.close()


@pytest.fixture
def willing(worker, monkeypatch):
    """A checker that likes every grammar."""
    made = mock.Mock()
    monkeypatch.setattr(worker, "_checker", made)
    return made


def test_a_checker_that_cannot_be_begun_is_tried_again(worker, executor) -> None:
    with mock.patch.object(checker.subprocess, "Popen", side_effect=OSError("no more processes")):
        first = seen_to(worker, pending(1))
    assert (first.error.code, first.compiled) == (FAILED, False)
    with mock.patch.object(worker, "_checker", SimpleNamespace(check=lambda wanted: None)):
        second = seen_to(worker, pending(1))
    assert (second.error, second.compiled) == (None, True)


def test_a_thread_that_cannot_be_begun_is_tried_again(worker, willing) -> None:
    with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
        assert seen_to(worker, pending(1)).error.code == FAILED
    assert seen_to(worker, pending(1)).error is None


class Panic(BaseException):
    """As a panic of Rust's comes: no Exception."""


def test_a_panic_fails_its_own_grammar_and_ends_no_thread(worker, willing, executor, monkeypatch) -> None:
    monkeypatch.setattr(grammar_worker, "QUIET_S", 0.0)
    executor.prepare.side_effect = [Panic, Panic, None]
    assert seen_to(worker, pending(1)).error.code == FAILED
    worker.drop(["x"])
    wait_for(lambda: executor.prepare.call_count == 2)
    assert seen_to(worker, pending(2)).compiled


def test_a_fault_of_the_engine_is_not_told_as_the_requests() -> None:
    assert isinstance(Refused("mine", "no checker", None, FAILED).error, EngineError)
    error = Refused("mine", "no such grammar", "regex", "invalid_schema").error
    assert isinstance(error, RequestError)
    assert (error.message, error.param, error.code) == ("no such grammar", "regex", "invalid_schema")


def test_what_there_is_no_room_for_is_only_checked_and_not_a_second_time(worker, willing, executor) -> None:
    grammar = seen_to(worker, pending(1, room=False))
    assert (grammar.checked, grammar.compiled) == (True, False)
    executor.prepare.assert_not_called()
    grammar.room = True
    assert seen_to(worker, grammar).compiled
    willing.check.assert_called_once()


def test_a_bad_grammar_is_told_and_an_unwanted_one_is_left_alone(worker, willing) -> None:
    willing.check.side_effect = RequestError("no such rule", FIELD, "invalid_schema")
    assert seen_to(worker, pending(1)).error.code == "invalid_schema"
    unwanted = pending(2)
    unwanted.unwanted = True
    assert seen_to(worker, unwanted).error is None and not unwanted.checked


def test_the_oldest_comes_first_and_what_is_unused_goes_before_the_next(worker, willing, executor) -> None:
    begun, go_on = threading.Event(), threading.Event()
    calls: list[tuple[str | None, list[str]]] = []

    def prepare(wanted, vocabulary, unused) -> None:
        calls.append((wanted and wanted.regex, unused))
        begun.set()
        assert go_on.wait(HANG_S)

    executor.prepare.side_effect = prepare
    worker.submit(pending(1))
    assert begun.wait(HANG_S)
    for number in (3, 2):
        worker.submit(pending(number))
    worker.drop(["x", "y"])
    go_on.set()
    done: list[PendingGrammar] = []
    while len(done) < 3:
        worker.wait()
        done += worker.collect()
    assert calls == [("a{1}", []), ("a{2}", ["x", "y"]), ("a{3}", [])]


def test_what_is_unused_goes_by_itself_once_nothing_is_asked_for(worker, willing, executor, monkeypatch) -> None:
    monkeypatch.setattr(grammar_worker, "QUIET_S", 2 * HANG_S)
    assert seen_to(worker, pending(1)).compiled
    worker.drop(["x"])
    wait_for(worker._todo.empty)
    assert seen_to(worker, pending(2)).compiled
    assert [call.args[2] for call in executor.prepare.call_args_list] == [[], ["x"]]  # nothing else was dropped for
    monkeypatch.setattr(grammar_worker, "QUIET_S", 0.0)
    executor.prepare.side_effect = OSError("the rank has gone")  # ends no thread
    worker.drop(["y"])
    wait_for(lambda: executor.prepare.call_count == 3)
    assert executor.prepare.call_args.args[::2] == (None, ["y"])
    executor.prepare.side_effect = None
    assert seen_to(worker, pending(3)).compiled
