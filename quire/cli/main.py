"""`quire`: finds the command and runs it.

The commands are data, imported only when chosen, so that `--version` and `--help` answer at once and also where torch
is missing or broken. Errors that quire raises on purpose become one line and exit status 2.
"""

import importlib
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quire.base.errors import ConfigError, QuireError
from quire.base.registry import did_you_mean
from quire.cli.parser import Parser
from quire.version import __version__


@dataclass(frozen=True, slots=True)
class Command:
    """A command: the module with its `add_arguments(parser)` and `run(args) -> int`, and its line in the help."""

    module: str
    help: str


COMMANDS = {
    "run": Command("quire.cli.run", "print the model's answer to a prompt"),
    "chat": Command("quire.cli.chat", "talk with a model here, or with a running server"),
    "serve": Command("quire.cli.serve", "serve a model over HTTP, as OpenAI's API does"),
    "bench": Command("quire.cli.bench", "measure throughput or latency, as JSON"),
    "bench serve": Command("quire.cli.load.command", "put load on a running server, open loop or closed"),
    "bench multiturn": Command("quire.cli.load.command", "the same with conversations that grow"),
    "bench prefix": Command("quire.cli.load.command", "the same with prompts that begin alike"),
    "bench structured": Command("quire.cli.load.command", "the same with answers that follow JSON schemas"),
    "config": Command("quire.cli.config", "show every setting, its value and where it came from"),
    "doctor": Command("quire.cli.doctor", "check this machine, and say what to repair and how"),
    "collect-env": Command("quire.cli.collect_env", "describe this machine for a bug report"),
}

USAGE_STATUS = 2
INTERRUPTED_STATUS = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; `argv` without the program's name. Returns the exit status."""
    _fill_descriptors()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"] and words[1:]:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-v", "-V", "--version", "version"):
        print(f"quire {__version__}")
        return 0
    length = 2 if " ".join(words[:2]) in COMMANDS else 1
    return _guarded(" ".join(words[:length]), words[length:])


def usage() -> str:
    """The text of `quire --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"quire {__version__}: an LLM inference and serving engine",
            "",
            "usage: quire COMMAND [FLAGS]       quire COMMAND --help lists its flags",
            "",
            *lines,
            "",
            "Without a model's name every command takes the model that ships with quire:",
            '  quire run "Once upon a time"',
        ]
    )


def _fill_descriptors() -> None:
    """Open those of 0 to 2 that are closed: else a listener or a rank's socket becomes somebody's standard output."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)
    os.close(opened)


def _guarded(name: str, words: list[str]) -> int:
    args = Namespace()
    try:
        run, parser = _command(name)
        args = parser.parse(words)
        status = 0 if args.helped else run(args)
        print(end="", flush=True)  # also where standard output is closed
        return status
    except QuireError as error:
        if _debugging(args):
            raise
        print(f"quire {name}: {error}", file=sys.stderr)
        return USAGE_STATUS
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED_STATUS
    except BrokenPipeError:
        # The reader left (`quire config | head`). Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _command(name: str) -> tuple[Callable[[Namespace], int], Parser]:
    if name not in COMMANDS:
        raise ConfigError(f"there is no such command; {did_you_mean(name, COMMANDS)}")
    module = importlib.import_module(COMMANDS[name].module)
    parser = Parser(name, COMMANDS[name].help)
    module.add_arguments(parser)
    return module.run, parser


def _debugging(args: Namespace) -> bool:
    said = vars(args).get("log_level") == "debug"
    return said or logging.getLogger("quire").isEnabledFor(logging.DEBUG)
