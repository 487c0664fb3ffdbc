"""Hermes, Qwen 2.5, Qwen 3: `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`."""

from collections.abc import Sequence

from quire.chat.events import Tools
from quire.chat.formats.base import ToolFormat
from quire.chat.grammar import Rules, Tool
from quire.chat.json_call import json_call, json_object
from quire.chat.reader import Space, Steps, Take

START, END = "<tool_call>", "</tool_call>"


def _steps(tools: Tools) -> Steps:
    yield Take((START,))
    yield Space()
    yield from json_call()
    yield Space()
    yield Take((END,))


def _calls(rules: Rules, tools: Sequence[Tool], several: bool) -> str:
    begin, end = rules.literal(START + "\n"), rules.literal("\n" + END)
    return rules.several(f"{begin} {json_object(rules, tools)} {end}", "\n", several)


FORMAT = ToolFormat("hermes", signs=((START,),), openers=(START,), steps=_steps, markers=(START, END), calls=_calls)
