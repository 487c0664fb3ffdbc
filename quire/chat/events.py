"""What a model's text turns out to be: words, thoughts, calls of tools. And `fold`, which makes a message of it.

Made by `StreamSplitter`, written out by the server.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Tools = Mapping[str, Mapping[str, object]]
"""The tools on offer: name to the JSON schema of the parameters."""


@dataclass(frozen=True, slots=True)
class Content:
    """Words for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Words of the model to itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call of a tool begins; calls are numbered from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments; all pieces joined are a JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallBroken:
    """A call that had begun is none after all; `text` is what the model wrote, from its beginning."""

    index: int
    text: str


Event = Content | Reasoning | CallStart | Arguments | CallBroken


@dataclass(slots=True)
class Call:
    """One call of a tool; `arguments` is JSON."""

    name: str
    arguments: str = ""


@dataclass(slots=True)
class ParsedAnswer:
    """A whole answer."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)


def fold(events: Iterable[Event]) -> ParsedAnswer:
    """All events of an answer as one message. A broken call is content."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: dict[int, tuple[str, list[str]]] = {}
    for event in events:
        match event:
            case Content(text):
                content.append(text)
            case Reasoning(text):
                reasoning.append(text)
            case CallStart(index, name):
                calls[index] = (name, [])
            case Arguments(index, text):
                calls[index][1].append(text)
            case CallBroken(index, text):
                del calls[index]
                content.append(text)
    made = [Call(name, "".join(parts)) for name, parts in calls.values()]
    return ParsedAnswer("".join(content), "".join(reasoning), made)


def merge(events: Iterable[Event]) -> list[Event]:
    """The same events with neighbouring pieces of one thing joined."""
    merged: list[Event] = []
    parts: list[str] = []

    def close() -> None:
        if len(parts) > 1:
            last = merged.pop()
            text = "".join(parts)
            match last:
                case Arguments(index, _):
                    merged.append(Arguments(index, text))
                case Reasoning():
                    merged.append(Reasoning(text))
                case _:
                    merged.append(Content(text))
        parts.clear()

    for event in events:
        if not isinstance(event, Content | Reasoning | Arguments):
            close()
            merged.append(event)
        elif parts and _alike(merged[-1], event):
            parts.append(event.text)
        else:
            close()
            merged.append(event)
            parts.append(event.text)
    close()
    return merged


def _alike(one: Event, other: Event) -> bool:
    if isinstance(one, Arguments) and isinstance(other, Arguments):
        return one.index == other.index
    return type(one) is type(other)
