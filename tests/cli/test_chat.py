"""`quire chat`: a conversation remembers, forgets, survives failures and interrupts."""

import io
from collections.abc import Iterator

import pytest

from quire.base.errors import ConfigError
from quire.cli import chat as command
from quire.cli.chat import Terminal, run
from tests.cli.fakes import FakeModel, parsed

pytestmark = pytest.mark.plain


def converse(model: FakeModel, *lines: str | type[BaseException], words: tuple[str, ...] = ()) -> str:
    """What the terminal shows when the user writes `lines` (or raises, as Ctrl-C does) and then leaves."""
    script: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

    def read(prompt: str) -> str:
        line = next(script)
        if isinstance(line, str):
            return line
        raise line

    out = io.StringIO()
    assert run(parsed(command, *words), model.make, Terminal(read, out)) == 0
    assert model.closed
    return out.getvalue()


def contents(model: FakeModel) -> list[list[str]]:
    """The texts of the messages of each request."""
    return [[message["content"] for message in messages] for messages, _ in model.asked]  # type: ignore[attr-defined]


def test_the_conversation_is_sent_whole() -> None:
    model = FakeModel()
    shown = converse(model, "a b", "c")
    assert contents(model) == [["a b"], ["a b", "b a ", "c"]]
    assert "b a \n" in shown and "Chatting with default" in shown


def test_reset_forgets_all_but_the_system_text() -> None:
    model = FakeModel()
    converse(model, "a", "/reset", "b", words=("--system", "s"))
    assert contents(model) == [["s", "a"], ["s", "b"]]


@pytest.mark.parametrize("word", ["/exit", "/quit"])
def test_exit_leaves(word: str) -> None:
    model = FakeModel()
    converse(model, word, "a")
    assert not model.asked


def test_empty_lines_and_unknown_commands_ask_nothing() -> None:
    model = FakeModel()
    assert "(commands: /reset, /exit)" in converse(model, "", "  ", "/help")
    assert not model.asked


def test_an_interrupt_stops_the_answer_and_keeps_what_was_said() -> None:
    model = FakeModel(interrupts_after=1)
    shown = converse(model, "a b", "/reset", "c")
    assert "b \n(stopped)" in shown
    assert model.stopped == 2


def test_an_interrupted_answer_is_part_of_the_conversation() -> None:
    model = FakeModel(interrupts_after=1)
    converse(model, "a b", "c")
    assert contents(model)[1] == ["a b", "b ", "c"]


def test_an_interrupt_at_the_prompt_drops_the_line() -> None:
    model = FakeModel()
    assert "Ctrl-D or /exit leaves" in converse(model, KeyboardInterrupt, "a")
    assert contents(model) == [["a"]]


def test_a_failed_answer_is_told_and_forgotten() -> None:
    model = FakeModel(fails_after=1)
    shown = converse(model, "a b", "c")
    assert "(failed: the device burnt down)" in shown
    assert contents(model) == [["a b"], ["c"]]


def test_a_model_without_a_template_cannot_chat() -> None:
    with pytest.raises(ConfigError, match="quire run --raw"):
        converse(FakeModel(template=False), "a")


def test_flags_reach_the_sampling() -> None:
    model = FakeModel()
    converse(model, "a", words=("small", "--temperature", "0", "--max-tokens", "9"))
    assert (model.asked[0][1].temperature, model.asked[0][1].max_tokens) == (0, 9)
    assert model.made_from[0].model.model == "small"
