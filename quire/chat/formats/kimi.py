"""Kimi K2: `functions.f:0` and JSON between special tokens."""

from collections.abc import Sequence

from quire.chat.events import Tools
from quire.chat.formats.base import ToolFormat
from quire.chat.grammar import Rules, Tool
from quire.chat.reader import Done, MalformedError, Peek, Space, Start, Steps, Take, Until, Value, need

ALL, ALL_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
ONE, ONE_END = "<|tool_call_begin|>", "<|tool_call_end|>"
ARGUMENTS = "<|tool_call_argument_begin|>"


def _steps(tools: Tools) -> Steps:
    yield Take((ALL,))
    yield Space()
    following = need((yield Take((ONE,))))
    while following == ONE:
        label = need((yield Until((ARGUMENTS,)))).strip()
        name = label.removeprefix("functions.").rpartition(":")[0] or label
        yield Take((ARGUMENTS,))
        yield Space()
        if (yield Peek()) != "{":
            raise MalformedError
        yield Start(name)
        need((yield Value(write=True)))
        yield Done()
        yield Space()
        yield Take((ONE_END,))
        yield Space()
        following = (yield Take((ONE, ALL_END))) or ""


def _calls(rules: Rules, tools: Sequence[Tool], several: bool) -> str:
    bodies = [
        f"{rules.literal(f'functions.{tool.name}:')} /[0-9]{{1,3}}/ {rules.literal(ARGUMENTS)} {rules.json(tool)}"
        for tool in tools
    ]
    call = f"{rules.literal(ONE)} {rules.one_of(bodies)} {rules.literal(ONE_END)}"
    return f"{rules.literal(ALL)} {rules.several(call, '', several)} {rules.literal(ALL_END)}"


FORMAT = ToolFormat(
    "kimi_k2",
    signs=((ARGUMENTS,),),
    openers=(ALL, ONE),
    steps=_steps,
    markers=(ALL, ALL_END, ONE, ONE_END, ARGUMENTS),
    calls=_calls,
)
