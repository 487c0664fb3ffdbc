"""Hermes, Qwen 2.5, Qwen 3: `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`."""

from quire.chat.events import Tools
from quire.chat.formats.base import ToolFormat
from quire.chat.json_call import json_call
from quire.chat.reader import Space, Steps, Take

START, END = "<tool_call>", "</tool_call>"


def _steps(tools: Tools) -> Steps:
    yield Take((START,))
    yield Space()
    yield from json_call()
    yield Space()
    yield Take((END,))


FORMAT = ToolFormat("hermes", signs=((START,),), openers=(START,), steps=_steps, markers=(START, END))
