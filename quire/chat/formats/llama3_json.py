"""Llama 3.1 to 3.3: the answer is `{"name": "f", "parameters": {...}}`, several with `;` between them.

Only names of tools on offer make it a call: any other JSON is an answer in JSON.
"""

from collections.abc import Sequence

from quire.chat.events import Tools
from quire.chat.formats.base import ToolFormat
from quire.chat.grammar import Rules, Tool
from quire.chat.json_call import json_call, json_object
from quire.chat.reader import Space, Steps, Take

START = "<|python_tag|>"


def _steps(tools: Tools) -> Steps:
    yield Take((START,))
    following: str | None = ";"
    while following is not None:
        yield Space()
        yield from json_call(tools)
        yield Space()
        following = yield Take((";",))


def _calls(rules: Rules, tools: Sequence[Tool], several: bool) -> str:
    return rules.several(json_object(rules, tools, "parameters"), "; ", several)


FORMAT = ToolFormat(
    "llama3_json",
    signs=((START,), ('{"name": function name, "parameters": dictionary',)),
    openers=(START,),
    steps=_steps,
    bare="{",
    markers=(START,),
    calls=_calls,
)
