"""Qwen 3 Coder: `<tool_call><function=f><parameter=a>1</parameter></function></tool_call>`, values as bare text."""

from collections.abc import Sequence

from quire.chat.events import Tools
from quire.chat.formats.base import ToolFormat
from quire.chat.grammar import Rules, Tool
from quire.chat.reader import Done, Space, Start, Steps, Take, Until, Write, need
from quire.chat.typed import bare_arguments, typed_argument

START, END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER = "<parameter="
VALUE_ENDS = ("\n</parameter>", "</parameter>")


def _steps(tools: Tools) -> Steps:
    yield Take((START,))
    yield Space()
    need((yield Take((FUNCTION,))))
    name = need((yield Until((">",)))).strip()
    yield Take((">",))
    yield Start(need(name or None))
    first = True
    yield Space()
    while need((yield Take((PARAMETER, FUNCTION_END)))) == PARAMETER:
        key = need((yield Until((">",)))).strip()
        yield Take((">",))
        yield Take(("\n",))
        yield from typed_argument(tools.get(name, {}), key, VALUE_ENDS, first=first)
        first = False
        yield Space()
    yield Write("{}" if first else "}")
    yield Done()
    yield Space()
    yield Take((END,))


def _calls(rules: Rules, tools: Sequence[Tool], several: bool) -> str:
    before, after = (PARAMETER, ">\n"), VALUE_ENDS[0] + "\n"
    bodies = [rules.literal(tool.name + ">\n") + " " + bare_arguments(rules, tool, before, after) for tool in tools]
    begin, end = rules.literal(f"{START}\n{FUNCTION}"), rules.literal(f"{FUNCTION_END}\n{END}")
    return rules.several(f"{begin} {rules.one_of(bodies)} {end}", "\n", several)


FORMAT = ToolFormat(
    "qwen3_coder",
    signs=((FUNCTION, PARAMETER),),
    openers=(START, FUNCTION),
    steps=_steps,
    markers=(START, END),
    calls=_calls,
)
