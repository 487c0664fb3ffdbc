"""Llama 3.2 and 4 in Python's words: the answer is `[f(a=1, b="x"), g()]`. Read, never run.

Only names of tools on offer make it a call: any other list is an answer.
"""

import json
from collections.abc import Mapping, Sequence

from quire.base.errors import RequestError
from quire.chat.events import Tools
from quire.chat.formats.base import ToolFormat
from quire.chat.grammar import Rules, Tool, properties_of
from quire.chat.reader import Done, MalformedError, Space, Start, Steps, Take, Until, Value, Write, need

START, END = "<|python_start|>", "<|python_end|>"


def _steps(tools: Tools) -> Steps:
    yield Take((START,))
    yield Space()
    need((yield Take(("[",))))
    following: str | None = ","
    while following == ",":
        yield Space()
        name = need((yield Until(("(", ")", "[", "]", "{", "}", '"', "\n"), limit=128))).strip()
        if name not in tools:
            raise MalformedError
        need((yield Take(("(",))))
        yield Start(name)
        yield from _arguments()
        yield Done()
        yield Space()
        following = yield Take((",", "]"))
    yield Space()
    yield Take((END,))


def _arguments() -> Steps:
    """`a=1, b="x")`, written as an object."""
    before = "{"
    yield Space()
    end = yield Take((")",))
    while end is None:
        yield Space()
        key = need((yield Until(("=", ")", "(", ",", "\n"), limit=128))).strip()
        need((yield Take(("=",))))
        if not key.isidentifier():
            raise MalformedError
        yield Space()
        yield Write(before + json.dumps(key) + ": ")
        need((yield Value(python=True, write=True)))
        before = ", "
        yield Space()
        end = ")" if need((yield Take((",", ")")))) == ")" else None
    yield Write("{}" if before == "{" else "}")


def _calls(rules: Rules, tools: Sequence[Tool], several: bool) -> str:
    bodies = [f"{rules.literal(tool.name + '(')} {_keywords(rules, tool)} {rules.literal(')')}" for tool in tools]
    return f'"[" {rules.several(rules.one_of(bodies), ", ", several)} "]"'


def _keywords(rules: Rules, tool: Tool) -> str:
    """Arguments in the order of the schema, the first without a comma before it."""
    listed = properties_of(tool)
    if listed is None:
        listed = []
    if bad := next((name for name, _, needed in listed if not name.isidentifier() and (needed or tool.strict)), None):
        raise RequestError(
            f"tools: {tool.name[:64]!r} has the argument {bad[:64]!r}, which this model cannot write.", "tools"
        )
    words = [
        (f"{json.dumps(name + '=')} {_value(rules, schema, tool.strict)}", needed)
        for name, schema, needed in listed
        if name.isidentifier()
    ]
    return rules.ordered(words, ", ")


def _value(rules: Rules, schema: Mapping[str, object], strict: bool) -> str:
    match schema.get("type"):
        case "boolean":
            return '( "True" | "False" )'
        case "null":
            return '"None"'
        case _:
            return rules.json_value(schema, strict=strict)


FORMAT = ToolFormat(
    "pythonic",
    signs=((START,), ("[func_name1(params_name1=params_value1",)),
    openers=(START,),
    steps=_steps,
    bare="[",
    markers=(START, END),
    calls=_calls,
)
