"""Mistral: `[TOOL_CALLS][{"name": "f", "arguments": {...}}, ...]`, and since 2025 `[TOOL_CALLS]f[ARGS]{...}`."""

from collections.abc import Sequence

from quire.chat.events import Tools
from quire.chat.formats.base import ToolFormat
from quire.chat.grammar import Rules, Tool
from quire.chat.json_call import json_list, json_object
from quire.chat.reader import Done, MalformedError, Peek, Space, Start, Steps, Take, Until, Value, need

START, ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


def _steps(tools: Tools) -> Steps:
    yield Take((START,))
    yield Space()
    if (yield Take(("[",))) is not None:
        yield from json_list()
    else:
        yield from _named()


def _named() -> Steps:
    name = need((yield Until((ID, ARGS, "{", "[", "\n")))).strip()
    if (yield Take((ID,))) is not None:
        need((yield Until((ARGS, "{"))))
    yield Take((ARGS,))
    yield Space()
    if not name or (yield Peek()) != "{":
        raise MalformedError
    yield Start(name)
    need((yield Value(write=True)))
    yield Done()


def _calls(rules: Rules, tools: Sequence[Tool], several: bool) -> str:
    if ARGS in rules.template:
        named = [f"{rules.literal(START + tool.name + ARGS)} {rules.json(tool)}" for tool in tools]
        return rules.several(rules.one_of(named), "", several)
    calls = rules.several(json_object(rules, tools), ", ", several)
    return f"{rules.literal(START + '[')} {calls} {rules.literal(']')}"


FORMAT = ToolFormat(
    "mistral",
    signs=((START,),),
    openers=(START,),
    steps=_steps,
    markers=(START, ID, ARGS),
    short_ids=True,
    calls=_calls,
)
