"""Granite 3: `<|tool_call|>[{"name": "f", "arguments": {...}}, ...]`, or with `<tool_call>`. Granite 4 is hermes."""

from collections.abc import Sequence

from quire.chat.events import Tools
from quire.chat.formats.base import ToolFormat
from quire.chat.grammar import Rules, Tool
from quire.chat.json_call import json_list, json_object
from quire.chat.reader import Space, Steps, Take, need

START, SPELLED = "<|tool_call|>", "<tool_call>"


def _steps(tools: Tools) -> Steps:
    yield Take((START, SPELLED))
    yield Space()
    need((yield Take(("[",))))
    yield from json_list()


def _calls(rules: Rules, tools: Sequence[Tool], several: bool) -> str:
    calls = rules.several(json_object(rules, tools), ", ", several)
    return f"{rules.literal(START + '[')} {calls} {rules.literal(']')}"


FORMAT = ToolFormat(
    "granite", signs=((START,),), openers=(START, SPELLED), steps=_steps, markers=(START, SPELLED), calls=_calls
)
