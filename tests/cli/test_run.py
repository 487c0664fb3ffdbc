"""`quire run`: the answer on standard output, figures on standard error, the template when there is one."""

import io

import pytest

from quire.base.errors import ConfigError, EngineError, RequestError
from quire.cli import run as command
from quire.cli.run import AnswerStats, Streams, run
from tests.cli.fakes import FakeModel, parsed, streams

pytestmark = pytest.mark.plain


def text(stream: object) -> str:
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def test_the_answer_is_all_that_standard_output_gets() -> None:
    model, out = FakeModel(), streams()
    assert run(parsed(command, "one two three"), model.make, out) == 0
    assert text(out.stdout) == "three two one \n"
    assert text(out.stderr).startswith("[3 tokens in ") and "quire chat" not in text(out.stderr)
    assert model.closed


def test_a_chat_template_is_used_and_the_checkpoints_defaults() -> None:
    model = FakeModel()
    run(parsed(command, "hello"), model.make, streams())
    messages, params = model.asked[0]
    assert messages == [{"role": "user", "content": "hello"}]
    assert (params.temperature, params.top_p, params.max_tokens, params.seed) == (0.25, 0.5, 256, None)


def test_flags_change_the_sampling() -> None:
    model = FakeModel()
    words = ("--temperature", "0", "--top-p", "0.9", "--top-k", "5", "--max-tokens", "7", "--seed", "3")
    words += ("--system", "terse")
    run(parsed(command, "hello", *words), model.make, streams())
    messages, params = model.asked[0]
    assert messages == [{"role": "system", "content": "terse"}, {"role": "user", "content": "hello"}]
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens, params.seed) == (0, 0.9, 5, 7, 3)
    assert model.made_from[0].model.seed == 3


def test_raw_continues_the_text() -> None:
    model = FakeModel()
    run(parsed(command, "--raw", "hello"), model.make, streams())
    assert model.asked[0][0] == "hello"


def test_a_model_without_a_template_continues_the_text() -> None:
    model = FakeModel(template=False)
    run(parsed(command, "hello"), model.make, streams())
    assert model.asked[0][0] == "hello"


def test_a_system_text_needs_a_template() -> None:
    with pytest.raises(RequestError, match="no chat template"):
        run(parsed(command, "hello", "--system", "s"), FakeModel(template=False).make, streams())
    with pytest.raises(ConfigError, match="leave out --raw"):
        run(parsed(command, "hello", "--system", "s", "--raw"), FakeModel().make, streams())


@pytest.mark.parametrize("words", [["-"], []])
def test_the_prompt_may_come_from_standard_input(words: list[str]) -> None:
    model = FakeModel()
    run(parsed(command, *words), model.make, streams("a text\nof two lines\n"))
    assert model.asked[0][0] == [{"role": "user", "content": "a text\nof two lines"}]


def test_without_a_prompt_nothing_is_loaded() -> None:
    model = FakeModel()
    with pytest.raises(ConfigError, match='write quire run "Once'):
        run(parsed(command), model.make, streams(tty=True))
    with pytest.raises(ConfigError, match="standard input is empty"):
        run(parsed(command), model.make, streams())
    assert not model.made_from


def test_hints_on_a_terminal_and_when_asked_for() -> None:
    for words, tty in (([], True), (["--hints"], False)):
        out = streams(tty=tty)
        run(parsed(command, "hello", *words), FakeModel().make, out)
        assert "quire serve" in text(out.stderr) and "quire serve" not in text(out.stdout)


def test_text_comes_piece_by_piece() -> None:
    pieces: list[str] = []

    class Out(io.StringIO):
        def flush(self) -> None:
            pieces.append(self.getvalue())

    run(parsed(command, "a b"), FakeModel().make, Streams(io.StringIO(), Out(), io.StringIO()))
    assert pieces[:2] == ["b ", "b a "]


def test_a_failure_is_told_and_the_model_closed() -> None:
    model = FakeModel(fails_after=1)
    with pytest.raises(EngineError, match="the device burnt down"):
        run(parsed(command, "a b"), model.make, streams())
    assert model.closed


def test_figures_of_nothing() -> None:
    assert str(AnswerStats()) == "0 tokens in 0.00 s, 0.0 tokens/s, the first after 0.00 s"
