"""`quire chat [MODEL]`: a conversation on the terminal, with a model in this process or (`--url`) a running server.

/reset forgets, /exit or Ctrl-D leaves, Ctrl-C stops the answer that is being written.
"""

import importlib
import sys
from argparse import Namespace
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from quire.base.errors import ConfigError, EngineDeadError, QuireError, RequestError
from quire.cli import flags
from quire.cli.address import Address
from quire.cli.local import Make, Message, TextModel, add_sampling, completion, make_llm, sampling_params
from quire.cli.parser import Parser
from quire.cli.remote import RemoteChat
from quire.messages.params import SamplingParams

GREETING = "Chatting with {name}. /reset forgets, /exit or Ctrl-D leaves, Ctrl-C stops an answer."
PROMPT = "> "


class ChatBackend(Protocol):
    """Somebody who answers."""

    name: str

    def answer(self, messages: Sequence[Message]) -> Iterator[str]:
        """Pieces of the answer as they come; closing the iterator stops it. Raises QuireError."""
        ...

    def close(self) -> None:
        """Leave."""
        ...


class LocalChat:
    """A model in this process."""

    def __init__(self, name: str, model: TextModel, params: SamplingParams) -> None:
        self.name = name
        self._model = model
        self._params = params

    def answer(self, messages: Sequence[Message]) -> Iterator[str]:
        """See `ChatBackend`."""
        outputs = self._model.stream_chat(messages, self._params)
        try:
            for output in outputs:
                yield completion(output).text
        finally:
            _stop(outputs)

    def close(self) -> None:
        """Give the model's memory back."""
        self._model.close()


@dataclass(slots=True)
class Terminal:
    """Where lines are read and answers written. `read` raises EOFError at the end, as `input` does."""

    read: Callable[[str], str] = input
    out: TextIO = field(default_factory=lambda: sys.stdout)

    def say(self, text: str, end: str = "\n") -> None:
        """Write now."""
        print(text, end=end, file=self.out, flush=True)


def add_arguments(parser: Parser) -> None:
    """Add MODEL, the server's address, the flags of sampling and the engine's settings."""
    parser.usage = "quire chat [MODEL] [--url URL] [FLAGS]"
    flags.add_model(parser)
    parser.add_argument("--url", metavar="URL", help="talk to the server at this address instead of loading a model")
    flags.add_setting(parser, "api_key")
    add_sampling(parser, max_tokens=1024)
    flags.add_settings(parser)


def run(args: Namespace, make: Make = make_llm, terminal: Terminal | None = None) -> int:
    """Converse until the user leaves. `make` and `terminal` stand in for engine and terminal in tests."""
    if terminal is None:
        terminal = Terminal()
        # Importing readline gives `input` editing and history; some builds of Python lack it.
        with suppress(ImportError):
            importlib.import_module("readline")
    with closing(_partner(args, make)) as partner:
        terminal.say(GREETING.format(name=partner.name))
        return converse(partner, terminal, args.system)


def converse(partner: ChatBackend, terminal: Terminal, system: str | None) -> int:
    """Read, answer, repeat. Returns 0 when the user leaves."""
    beginning: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    messages = list(beginning)
    while (line := _read(terminal)) is not None:
        if line in ("/exit", "/quit"):
            break
        if line == "/reset":
            messages = list(beginning)
            terminal.say("(forgotten)")
        elif line.startswith("/"):
            terminal.say("(commands: /reset, /exit)")
        elif line:
            messages = _turn(partner, terminal, [*messages, {"role": "user", "content": line}])
    return 0


def _turn(partner: ChatBackend, terminal: Terminal, messages: list[Message]) -> list[Message]:
    """Print the answer to `messages`. Returns the conversation with it, or without its last line if that failed."""
    said: list[str] = []
    pieces = partner.answer(messages)
    try:
        for piece in pieces:
            said.append(piece)
            terminal.say(piece, end="")
        terminal.say("")
    except KeyboardInterrupt:
        terminal.say("\n(stopped)")
    except EngineDeadError:
        raise
    except QuireError as error:
        terminal.say(f"\n(failed: {_advice(error)})")
        return messages[:-1]
    finally:
        _stop(pieces)
    return [*messages, {"role": "assistant", "content": "".join(said)}]


def _advice(error: QuireError) -> str:
    """What to say of a failed answer. Raises ConfigError where no answer can ever come."""
    code = error.code if isinstance(error, RequestError) else ""
    if code == "no_chat_template":
        raise ConfigError("this model has no chat template; continue texts with it: quire run --raw PROMPT") from error
    return f"{error} /reset begins anew" if code == "context_length_exceeded" else str(error)


def _read(terminal: Terminal) -> str | None:
    """The next line without blanks around it; None when the user leaves. Ctrl-C drops the line."""
    try:
        return terminal.read(PROMPT).strip()
    except KeyboardInterrupt:
        terminal.say("\n(Ctrl-D or /exit leaves)")
        return ""
    except EOFError:
        terminal.say("")
        return None


def _partner(args: Namespace, make: Make) -> ChatBackend:
    config, provenance = flags.load(args, quiet=True)
    if args.url is not None:
        name = config.engine.model.model if provenance["model"] != "default" else None
        body = {
            "temperature": args.temperature,
            "top_p": args.top_p,
            "top_k": args.top_k,
            "max_tokens": args.max_tokens,
        }
        body["seed"] = config.engine.model.seed if provenance["seed"] != "default" else None
        chosen = {key: value for key, value in body.items() if value is not None}
        return RemoteChat(Address.of(args.url, "--url"), config.server.api_key, name, chosen)
    model = make(config.engine)
    return LocalChat(config.engine.model.model, model, sampling_params(args, model.get_default_sampling_params()))


def _stop(pieces: object) -> None:
    """End an iterator that may be a generator, so that the request behind it is given up now."""
    if isinstance(pieces, Generator):
        pieces.close()
