"""Llama 3.2 and 4 in Python's words: the answer is `[f(a=1, b="x"), g()]`. Read, never run.

Only names of tools on offer make it a call: any other list is an answer.
"""

import json

from quire.chat.events import Tools
from quire.chat.formats.base import ToolFormat
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


FORMAT = ToolFormat(
    "pythonic",
    signs=((START,), ("[func_name1(params_name1=params_value1",)),
    openers=(START,),
    steps=_steps,
    bare="[",
    markers=(START, END),
)
