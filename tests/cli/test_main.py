"""`quire`: finds commands, answers help and version itself, and turns errors into one line."""

import importlib

import pytest

from quire.base.errors import ConfigError
from quire.cli import config, serve
from quire.cli.main import COMMANDS, main
from quire.version import __version__
from tests.cli.fakes import parsed

pytestmark = pytest.mark.plain


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["-v"], ["version"]])
def test_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out == f"quire {__version__}\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and command.help in shown for name, command in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_two_functions_and_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(COMMANDS[name].module)
    assert callable(module.run) and callable(module.add_arguments)
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: quire {name} ")


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sevre"]) == 2
    assert capsys.readouterr().err == "quire sevre: there is no such command; did you mean serve?\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--prot", "80"], "unknown flag --prot; did you mean --port"),
        (["--max-model-lem=80"], "unknown flag --max-model-lem; did you mean --max-model-len"),
        (["--zzzzzz"], "unknown flag --zzzzzz; quire serve --help lists the flags"),
        (["one", "two"], "unexpected argument 'two'"),
        (["--port"], "expected one argument"),
        (["--port", "http"], "flag --port: 'http' is not a whole number"),
        (["--port", "70000"], "flag --port must be at least 0 and at most 65535"),
        (["--dtype", "float23"], "did you mean float32"),
        (["m", "--model", "n"], "two models: m and --model n"),
        (["--enable-prefix-caching=yes"], "ignored explicit argument"),
        (["--help=prot"], "no help on 'prot'; did you mean port"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_wrong_command_lines_are_one_line_and_status_2(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *words]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.startswith("quire serve: ") and said.count("\n") == 1


def test_debugging_shows_where_an_error_came_from() -> None:
    with pytest.raises(ConfigError):
        main(["serve", "--log-level", "debug", "--port", "http"])


def test_an_interrupt_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "run", interrupt)
    assert main(["config"]) == 130


@pytest.mark.parametrize("words", [["--help=cache"], ["--help", "cache"], ["-h", "cache"]])
def test_help_on_a_section(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words]) == 0
    shown = capsys.readouterr().out
    assert "--block-size" in shown and "QUIRE_CACHE__BLOCK_SIZE" in shown and "--port" not in shown


@pytest.mark.parametrize("topic", ["enable-prefix-caching", "--enable_prefix_caching"])
def test_help_on_a_flag(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "serve"]) == 0
    everything = capsys.readouterr().out
    assert main(["serve", f"--help={topic}"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("--enable-prefix-caching, --no-enable-prefix-caching\n")
    assert len(shown) < len(everything) / 10


@pytest.mark.parametrize("topic", ["tp", "-tp", "tensor-parallel-size"])
def test_every_spelling_of_a_flag_is_a_topic(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help", topic]) == 0
    assert capsys.readouterr().out.startswith("-tp, --tensor-parallel-size\n")


def test_help_on_a_flag_of_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help", "max_tokens"]) == 0
    assert capsys.readouterr().out.startswith("--max-tokens\n    longest answer")


def test_no_line_of_the_help_is_too_long_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "  -tp, --tensor-parallel-size N " in shown
    assert max(map(len, shown.splitlines())) < 150


def test_underscores_are_dashes_in_names_only() -> None:
    args = parsed(serve, "--max_model_len=4_k", "--served_model_name", "a_b")
    assert (args.max_model_len, args.served_model_name) == ("4_k", "a_b")
