"""`Reader`: runs the parser of a tool format over text that comes in pieces.

A parser is a generator that asks for what must come next (`Take`, `Until`, `Value`, ...) and says what it found
(`Start`, `Write`, `Done`). Each question is answered once its answer is sure, so cuts cannot change it; each character
is consumed once, so time is linear. Written for `StreamSplitter`; knows no format.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from json.encoder import encode_basestring

from quire.chat.events import Arguments, CallStart, Content, Event, Reasoning
from quire.chat.values import Values


class MalformedError(Exception):
    """The text is no tool call."""


@dataclass(frozen=True, slots=True)
class Space:
    """Skip white space."""


@dataclass(frozen=True, slots=True)
class Peek:
    """The next character, not consumed; "" at the end."""


@dataclass(frozen=True, slots=True)
class Take:
    """The first of `options` that the text goes on with, consumed; None if it goes on with none."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Until:
    """The text before the first of `options`, which stays; None if there is none, or not within `limit` characters.

    With `write` it is written into a JSON string of the arguments as it comes, and the answer is "".
    """

    options: tuple[str, ...]
    limit: int | None = 256
    write: bool = False


@dataclass(frozen=True, slots=True)
class Value:
    """A value as JSON; None if there is none. With `write` it goes into the arguments as it comes; the answer is ""."""

    python: bool = False
    write: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """A call begins."""

    name: str


@dataclass(frozen=True, slots=True)
class Write:
    """More JSON for the arguments."""

    text: str


@dataclass(frozen=True, slots=True)
class Say:
    """Words up to the first of `options`, which stays, or to the end: for the user, or thoughts. Never undone."""

    options: tuple[str, ...]
    thoughts: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The arguments are complete; whatever follows cannot undo the call."""


Step = Space | Peek | Take | Until | Value | Start | Write | Say | Done
Steps = Generator[Step, str | None, None]


def need(answer: str | None) -> str:
    """An answer that must be there."""
    if answer is None:
        raise MalformedError
    return answer


@cache
def finder(options: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern for any of `options`."""
    return re.compile("|".join(map(re.escape, options)))


def held(text: str, options: tuple[str, ...]) -> int:
    """How many characters at the end of `text` might be the beginning of one of `options`."""
    begins, longest = beginnings(options)
    found = begins.search(text, max(0, len(text) - longest))
    while found is not None:
        end = text[found.start() :]
        if any(option.startswith(end) for option in options):
            return len(end)
        found = begins.search(text, found.start() + 1)
    return 0


@cache
def beginnings(options: tuple[str, ...]) -> tuple[re.Pattern[str], int]:
    """A pattern for the first character of any of `options`, and the length of their longest proper beginning."""
    firsts = "".join({option[0] for option in options})
    return re.compile(f"[{re.escape(firsts)}]"), max(map(len, options)) - 1


class Reader:
    """Runs the parser of a tool format over text that comes in pieces.

    Args:
        steps: the parser, at the beginning of what may be a call.
        index: number of the next call.

    Attributes:
        events: what was found; the owner takes them away.
        index: number of the next call, or of the one that goes on.
        open: a call has begun and its arguments go on.
        ended: the parser is through, well or not.
        failed: it met text that is no call.
        rest: text that it has not consumed.
    """

    def __init__(self, steps: Steps, index: int) -> None:
        self.events: list[Event] = []
        self.index = index
        self.open = False
        self.ended = False
        self.failed = False
        self.rest = ""
        self._steps = steps
        self._raw: list[str] = []
        self._parts: list[str] = []
        self._length = 0
        self._values: Values | None = None
        self._step = next(steps)

    def raw(self) -> str:
        """What was consumed since the last complete call."""
        return "".join(self._raw)

    def push(self, text: str, *, final: bool = False) -> None:
        """Take more text, up to the end of the call; `final` if no more will come."""
        self.rest += text
        while not self.ended:
            sure, answer = self._answer(self._step, final)
            if not sure:
                return
            try:
                self._step = self._steps.send(answer)
            except StopIteration:
                self.ended = True
            except MalformedError:
                self.ended = self.failed = True

    def _answer(self, step: Step, final: bool) -> tuple[bool, str | None]:
        """Whether the answer to a step is sure, and the answer."""
        match step:
            case Space():
                self._consume(len(self.rest) - len(self.rest.lstrip()))
                return bool(self.rest) or final, ""
            case Peek():
                return bool(self.rest) or final, self.rest[:1]
            case Take(options):
                return self._take(options, final)
            case Until():
                return self._until(step, final)
            case Value():
                return self._value(step, final)
            case Say():
                return self._say(step, final)
            case Start(name):
                self.events.append(CallStart(self.index, name))
                self.open = True
            case Write(text):
                self.events.append(Arguments(self.index, text))
            case Done():
                self.index += 1
                self.open = False
                self._raw.clear()
        return True, None

    def _consume(self, length: int) -> str:
        taken, self.rest = self.rest[:length], self.rest[length:]
        if taken:
            self._raw.append(taken)
        return taken

    def _take(self, options: tuple[str, ...], final: bool) -> tuple[bool, str | None]:
        for option in options:
            if self.rest.startswith(option):
                return True, self._consume(len(option))
            if option.startswith(self.rest) and not final:
                return False, None
        return True, None

    def _until(self, step: Until, final: bool) -> tuple[bool, str | None]:
        found = finder(step.options).search(self.rest)
        length = found.start() if found else len(self.rest) - (0 if final else held(self.rest, step.options))
        over = step.limit is not None and self._length + length > step.limit
        if step.limit is not None and over:
            length = step.limit - self._length
        self._length += length
        text = self._consume(length)
        if text and step.write:
            self.events.append(Arguments(self.index, encode_basestring(text)[1:-1]))
        elif text:
            self._parts.append(text)
        if not (found or over or final):
            return False, None
        whole = "".join(self._parts)
        self._parts, self._length = [], 0
        return True, whole if found and not over else None

    def _say(self, step: Say, final: bool) -> tuple[bool, str | None]:
        found = finder(step.options).search(self.rest)
        length = found.start() if found else len(self.rest) - (0 if final else held(self.rest, step.options))
        text, self.rest = self.rest[:length], self.rest[length:]
        self._raw.clear()
        if text:
            self.events.append(Reasoning(text) if step.thoughts else Content(text))
        return found is not None or final, ""

    def _value(self, step: Value, final: bool) -> tuple[bool, str | None]:
        values = self._values = self._values or Values(python=step.python)
        self._consume(values.push(self.rest))
        if final and not (values.done or values.broken):
            values.finish()
        if step.write and values.out:
            self.events.append(Arguments(self.index, "".join(values.out)))
            values.out.clear()
        if not (values.done or values.broken):
            return False, None
        self._values = None
        return True, None if values.broken else "".join(values.out)
