"""GLM 4.5: `<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>`, values as bare text."""

from collections.abc import Sequence

from quire.chat.events import Tools
from quire.chat.formats.base import ToolFormat
from quire.chat.grammar import Rules, Tool
from quire.chat.reader import Done, Space, Start, Steps, Take, Until, Write, need
from quire.chat.typed import bare_arguments, typed_argument

START, END = "<tool_call>", "</tool_call>"
KEY, KEY_END = "<arg_key>", "</arg_key>"
VALUE, VALUE_END = "<arg_value>", "</arg_value>"


def _steps(tools: Tools) -> Steps:
    need((yield Take((START,))))
    name = need((yield Until((KEY, END, "<")))).strip()
    yield Start(need(name or None))
    first = True
    while need((yield Take((KEY, END)))) == KEY:
        key = need((yield Until((KEY_END,)))).strip()
        yield Take((KEY_END,))
        yield Space()
        need((yield Take((VALUE,))))
        yield from typed_argument(tools.get(name, {}), key, (VALUE_END,), first=first)
        first = False
        yield Space()
    yield Write("{}" if first else "}")
    yield Done()


def _calls(rules: Rules, tools: Sequence[Tool], several: bool) -> str:
    before = KEY, f"{KEY_END}\n{VALUE}"
    bodies = [rules.literal(tool.name + "\n") + " " + bare_arguments(rules, tool, before, VALUE_END) for tool in tools]
    return rules.several(f"{rules.literal(START)} {rules.one_of(bodies)} {rules.literal(END)}", "\n", several)


FORMAT = ToolFormat(
    "glm45",
    signs=((KEY, VALUE),),
    openers=(START,),
    steps=_steps,
    markers=(START, END, KEY, KEY_END, VALUE, VALUE_END),
    calls=_calls,
)
