"""Where chat templates run: a Jinja sandbox with the names that transformers gives them, and limits on what they take.

A template comes with the checkpoint, so it is code of strangers: it sees plain values only, and time, output and
repetition are bounded between its operations. What a single one allocates (`"x".ljust(n)`) is not: the server runs
templates in text workers, which the system limits. Called by `ChatTemplate`; knows no tokens.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quire.base.errors import CheckpointError, RequestError
from quire.base.logging import get_logger

log = get_logger(__name__)

_LIMITER = "_limiter"
_CHECK_EVERY = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What one rendering may take.

    Attributes:
        seconds: of computing time of the thread.
        chars: of output, beyond twice the length of the texts that went in.
    """

    seconds: float = 2.0
    chars: int = 4 << 20


class _LimitError(Exception):
    """A template went over its limits."""


class _Limiter:
    """Counts what one rendering takes."""

    def __init__(self, limits: Limits, input_chars: int) -> None:
        self._deadline = time.thread_time() + limits.seconds
        self._seconds = limits.seconds
        self.chars = limits.chars + 2 * input_chars

    def check_time(self) -> None:
        if time.thread_time() > self._deadline:
            raise _LimitError(f"it ran longer than {self._seconds:g} s")

    def items(self, values: Iterable[Any]) -> Iterator[Any]:
        for count, value in enumerate(values):
            if count % _CHECK_EVERY == 0:
                self.check_time()
            yield value

    def join(self, pieces: Iterable[str]) -> str:
        kept, length = [], 0
        for piece in pieces:
            length += len(piece)
            if length > self.chars:
                raise _LimitError(f"it wrote more than {self.chars} characters")
            kept.append(piece)
        self.check_time()
        return "".join(kept)


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 (an attribute of jinja's)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with limits where loops have none: a macro may call itself, and multiply the calls.

    Multiplication is bounded, too: `"x" * 10**9` would take the memory before any output is counted.
    """

    intercepted_binops = frozenset({"*", "**"})

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (as jinja names it)
        __context[_LIMITER].check_time()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        limit = context[_LIMITER].chars
        for one, other in ((left, right), (right, left)):
            if (
                operator == "*"
                and isinstance(one, str | list | tuple)
                and isinstance(other, int)
                and len(one) * other > limit
            ):
                raise _LimitError(f"it repeats a value to more than {limit} elements")
        if operator == "**" and isinstance(right, int) and abs(right) > 1024:
            raise _LimitError("it raises a number to a power above 1024")
        return super().call_binop(context, operator, left, right)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"], autoescape=False
    )
    environment.filters["tojson"] = _tojson
    environment.filters[_LIMITER] = _limited
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    del environment.globals["lipsum"]
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without HTML escapes, as transformers writes it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_context
def _limited(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    limiter: _Limiter = context[_LIMITER]
    return limiter.items(values)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class Sandbox:
    """One compiled template.

    Args:
        source: Jinja.
        limits: what one rendering may take.

    Attributes:
        tree: its syntax tree, to be looked at only.

    Raises:
        CheckpointError: the source is no Jinja.
    """

    def __init__(self, source: str, limits: Limits) -> None:
        environment = _environment()
        self._limits = limits
        try:
            self.tree = environment.parse(source)
            limited = environment.parse(source)
            for loop in limited.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, _LIMITER, [], [], None, None).set_lineno(loop.lineno)
            code = environment.compile(limited)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(
                f"the chat template is not valid Jinja (line {error.lineno}: {error.message}); "
                "download the checkpoint again, or give another with --chat-template"
            ) from None
        self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))

    def render(self, values: Mapping[str, Any], input_chars: int) -> str:
        """The text for these values. Raises RequestError for what the template refuses and where it fails."""
        limiter = _Limiter(self._limits, input_chars)
        try:
            return limiter.join(self._template.generate({**values, _LIMITER: limiter}))
        except (_LimitError, OverflowError) as error:
            raise _failure(f"the chat template was stopped: {error}", "template_timeout") from None
        except jinja2.UndefinedError as error:
            raise _failure(f"the chat template does not fit these messages: {error.message}") from None
        except jinja2.TemplateError as error:
            raise _failure(f"the chat template refuses these messages: {error.message}") from None
        except Exception as error:
            # What it says may name files and classes; clients get the fact only.
            log.info("the chat template failed: %s: %s", type(error).__name__, error)
            raise _failure("the chat template failed on these messages; the log says why") from None


def _failure(message: str, code: str = "template_error") -> RequestError:
    return RequestError(message, param="messages", code=code)
