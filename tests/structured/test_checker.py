"""The checker: a process that says what is wrong with a grammar, and whose end is nobody else's."""

import signal
import sys
from pathlib import Path
from unittest import mock

import pytest

import quire
from quire.base.errors import EngineError, RequestError
from quire.base.interpreter import python
from quire.messages.frames import send
from quire.messages.structured import StructuredOutputsParams
from quire.structured import checker as checker_module
from quire.structured.checker import GrammarChecker
from quire.structured.matcher import Vocabulary
from tests.timing import children_cpu_s

pytestmark = pytest.mark.multi

TOKENIZER = Path(quire.__file__).parent / "assets" / "default_model" / "tokenizer.json"
VOCABULARY = Vocabulary(str(TOKENIZER), 4096, (2, 0))

BOMB = "start: X\nX: " + " & ".join(f"/(.*[a-z]{{{i}}}){{{i}}}/" for i in range(2, 40))

GOOD = [
    StructuredOutputsParams(regex="[ab]{2,4}"),
    StructuredOutputsParams(choice=["ja", 'nein "\\ \n', "vielleicht ü 🎉"]),
    StructuredOutputsParams(grammar='root ::= "a" b+\nb ::= "b" | "c"'),
    StructuredOutputsParams(grammar='start: "a" start | "b"'),
    StructuredOutputsParams(json={"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {}}}),
]
BAD = [
    StructuredOutputsParams(regex="("),
    StructuredOutputsParams(regex="(?=a)b"),
    StructuredOutputsParams(regex=r"(a)\1"),
    StructuredOutputsParams(regex=r"[^\x00-\U0010ffff]"),
    StructuredOutputsParams(grammar="start: missing"),
    StructuredOutputsParams(grammar="root ::= ("),
    StructuredOutputsParams(grammar="start: start"),
    StructuredOutputsParams(json={"type": "strng"}),
    StructuredOutputsParams(json={"$ref": "#"}),
    StructuredOutputsParams(json={"$ref": "http://127.0.0.1:9/x"}),
    StructuredOutputsParams(json={"not": {"type": "string"}}),
    StructuredOutputsParams(json={"allOf": [{"type": "string"}, {"type": "integer"}]}),
]


@pytest.fixture(scope="module")
def checker():
    made = GrammarChecker(VOCABULARY)
    yield made
    made.close()


@pytest.mark.parametrize("wanted", GOOD, ids=repr)
def test_good_grammars_pass(checker, wanted):
    checker.check(wanted)


@pytest.mark.parametrize("wanted", BAD, ids=repr)
def test_bad_ones_are_refused_with_a_short_reason(checker, wanted):
    with pytest.raises(RequestError) as caught:
        checker.check(wanted)
    assert caught.value.code == "invalid_schema"
    assert (
        len(caught.value.message) < 400 and "\n" not in caught.value.message and "/assets/" not in caught.value.message
    )


@pytest.mark.parametrize(
    ("end", "code"), [(signal.SIGPROF, "grammar_timeout"), (signal.SIGABRT, "grammar_too_complex")]
)
def test_the_end_of_the_process_is_a_refusal_and_the_next_one_serves(checker, end, code):
    checker.check(GOOD[0])
    process = checker._process

    def send_and_end(channel, frame):
        process.send_signal(signal.SIGSTOP)  # as if it had much to do
        send(channel, frame)
        for number in (end, signal.SIGCONT):
            process.send_signal(number)

    with mock.patch.object(checker_module, "send", send_and_end), pytest.raises(RequestError) as caught:
        checker.check(GOOD[0])
    assert caught.value.code == code
    checker.check(GOOD[0])


def test_a_process_that_is_killed_blames_no_grammar(checker):
    checker.check(GOOD[0])
    checker.interrupt()
    with pytest.raises(EngineError, match="has ended with -9"):
        checker.check(GOOD[0])
    checker.check(GOOD[0])


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGABRT, signal.SIGPROF])
def test_a_process_that_ends_before_it_has_seen_a_grammar_blames_none(monkeypatch, end):
    program = f"import os; os.kill(os.getpid(), {end:d})"
    monkeypatch.setattr(checker_module, "python", lambda: [sys.executable, "-c", program])
    with pytest.raises(EngineError, match=f"has ended with -{end:d}"):
        GrammarChecker(VOCABULARY).check(GOOD[0])


def test_a_process_that_may_have_less_memory_than_its_limit_serves(monkeypatch):
    limited = ["sh", "-c", 'ulimit -v 900000 && exec "$@"', "", *python()]
    monkeypatch.setattr(checker_module, "python", lambda: limited)
    checker = GrammarChecker(VOCABULARY)
    checker.check(GOOD[0])
    checker.close()


def test_a_process_that_ends_by_itself_blames_no_grammar(monkeypatch, capfd):
    monkeypatch.setattr(checker_module, "python", lambda: [sys.executable, "-c", "import no_such_module"])
    with pytest.raises(EngineError, match="has ended with 1"):
        GrammarChecker(VOCABULARY).check(GOOD[0])
    assert "no_such_module" in capfd.readouterr().err


PANICKING = """
import sys
from quire.structured import checker_process
compile = checker_process.LLBackend.compile
class Panic(BaseException): pass
def panic(self, wanted):
    if wanted.choice is None:
        return compile(self, wanted)
    raise Panic("at the disco")
checker_process.LLBackend.compile = panic
sys.argv[1:] = sys.argv[3:]
checker_process.main()
"""


def test_a_panic_is_told_in_the_log_and_ends_nothing(monkeypatch, capfd):
    monkeypatch.setattr(checker_module, "python", lambda: [sys.executable, "-c", PANICKING])
    checker = GrammarChecker(VOCABULARY)
    checker.check(GOOD[0])
    process = checker._process
    with pytest.raises(EngineError, match="has failed with Panic"):
        checker.check(GOOD[1])
    assert "at the disco" in capfd.readouterr().err
    checker.check(GOOD[0])
    assert checker._process is process
    checker.close()


def test_a_tokenizer_that_cannot_be_read_is_said(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for path in ("tokenizer.json", "missing.json"):
        checker = GrammarChecker(Vocabulary(str(tmp_path / path), 100, ()))
        with pytest.raises(RequestError) as caught:
            checker.check(GOOD[0])
        assert caught.value.code == "unsupported_parameter"
        checker.close()


def test_a_bomb_ends_within_its_limits():
    before = children_cpu_s()
    checker = GrammarChecker(VOCABULARY)
    with pytest.raises(RequestError) as caught:
        checker.check(StructuredOutputsParams(grammar=BOMB))
    checker.close()
    assert caught.value.code in ("grammar_timeout", "grammar_too_complex")
    assert children_cpu_s() - before < 10, "some of it to begin, and 2 s for the bomb"
