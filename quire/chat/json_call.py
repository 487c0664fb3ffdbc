"""A tool call as one JSON object, `{"name": ..., "arguments": {...}}`: the part that several formats share."""

import json
from collections.abc import Container, Sequence

from quire.chat.grammar import Rules, Tool
from quire.chat.reader import Done, MalformedError, Peek, Space, Start, Steps, Take, Value, Write, need
from quire.chat.values import as_json

ARGUMENTS = frozenset({"arguments", "parameters"})


def json_call(known: Container[str] | None = None) -> Steps:
    """Read one such object, from its brace to its brace. Arguments after the name are passed on as they come.

    Args:
        known: the only names that are tools; None takes any.
    """
    need((yield Take(("{",))))
    name: str | None = None
    arguments: str | None = None
    written = False
    end: str | None = ","
    while end == ",":
        yield Space()
        if (yield Peek()) != '"':
            raise MalformedError
        key = json.loads(need((yield Value())))
        yield Space()
        need((yield Take((":",))))
        yield Space()
        if key in ARGUMENTS and name is not None and not written and (yield Peek()) == "{":
            yield Start(_checked(name, known))
            need((yield Value(write=True)))
            yield Done()
            written = True
        else:
            value = need((yield Value()))
            name = value if key == "name" and not written else name
            arguments = value if key in ARGUMENTS else arguments
        yield Space()
        end = yield Take((",", "}"))
    if written:
        return
    need(end)
    given = _object(arguments)
    yield Start(_checked(need(name), known))
    yield Write(given)
    yield Done()


def json_list() -> Steps:
    """Read several such objects with commas between them, after the opening bracket up to the closing one."""
    following: str | None = ","
    while following == ",":
        yield Space()
        yield from json_call()
        yield Space()
        following = yield Take((",", "]"))


def json_object(rules: Rules, tools: Sequence[Tool], arguments: str = "arguments") -> str:
    """The grammar of such an object for one of the tools, as models write it."""
    bodies = []
    for tool in tools:
        head = f"{json.dumps(tool.name)}, {json.dumps(arguments)}: "
        bodies.append(f"{rules.literal(head)} {rules.json(tool)}")
    begin, end = rules.literal('{"name": '), rules.literal("}")
    return f"{begin} {rules.one_of(bodies)} {end}"


def _checked(name: str, known: Container[str] | None) -> str:
    """A name, given as JSON."""
    text = json.loads(name) if name.startswith('"') else ""
    if not text or (known is not None and text not in known):
        raise MalformedError
    return str(text)


def _object(arguments: str | None) -> str:
    """Arguments that came before the name, as a text, or not at all."""
    if arguments is not None and arguments.startswith('"'):
        arguments = as_json(json.loads(arguments).strip() or "{}")
    elif arguments in (None, "null"):
        arguments = "{}"
    if arguments is None or not arguments.startswith("{"):
        raise MalformedError
    return arguments
