"""MiniMax: M2 writes `<invoke name="f"><parameter name="a">1</parameter></invoke>` between its own markers, M1 a JSON
object per line between `<tool_calls>` and `</tool_calls>`.
"""

from collections.abc import Generator, Sequence

from quire.chat.events import Tools
from quire.chat.formats.base import ToolFormat
from quire.chat.grammar import Rules, Tool
from quire.chat.json_call import json_call, json_object
from quire.chat.reader import Done, Peek, Space, Start, Step, Steps, Take, Until, Write, need
from quire.chat.typed import bare_arguments, typed_argument

START, END = "<minimax:tool_call>", "</minimax:tool_call>"
INVOKE, INVOKE_END = "<invoke name=", "</invoke>"
PARAMETER, PARAMETER_END = "<parameter name=", "</parameter>"
OPENING, CLOSING = START + "\n", "\n" + END
OLD, OLD_END = "<tool_calls>", "</tool_calls>"
OLD_OPENING, OLD_CLOSING = OLD + "\n", "\n" + OLD_END


def _steps(tools: Tools) -> Steps:
    yield Take((START,))
    yield Space()
    need((yield Take((INVOKE,))))
    following: str | None = INVOKE
    while following == INVOKE:
        name = yield from _quoted()
        yield Start(need(name or None))
        yield from _arguments(tools, name)
        yield Done()
        yield Space()
        following = yield Take((INVOKE, END))


def _arguments(tools: Tools, name: str) -> Steps:
    first = True
    yield Space()
    while need((yield Take((PARAMETER, INVOKE_END)))) == PARAMETER:
        key = yield from _quoted()
        yield from typed_argument(tools.get(name, {}), key, (PARAMETER_END,), first=first)
        first = False
        yield Space()
    yield Write("{}" if first else "}")


def _quoted() -> Generator[Step, str | None, str]:
    """A name up to `>`, in quotes or not."""
    name = need((yield Until((">",)))).strip().strip("\"'")
    yield Take((">",))
    return name


def _calls(rules: Rules, tools: Sequence[Tool], several: bool) -> str:
    before = f'{PARAMETER}"', '">'
    bodies = []
    for tool in tools:
        arguments = bare_arguments(rules, tool, before, PARAMETER_END + "\n")
        head, end = rules.literal(f'{INVOKE}"{tool.name}">\n'), rules.literal(INVOKE_END)
        bodies.append(f"{head} {arguments} {end}")
    calls = rules.several(rules.one_of(bodies), "\n", several)
    return f"{rules.literal(OPENING)} {calls} {rules.literal(CLOSING)}"


def _old_steps(tools: Tools) -> Steps:
    yield Take((OLD,))
    yield Space()
    while (yield Peek()) == "{":
        yield from json_call()
        yield Space()
    yield Take((OLD_END,))


def _old_calls(rules: Rules, tools: Sequence[Tool], several: bool) -> str:
    calls = rules.several(json_object(rules, tools), "\n", several)
    return f"{rules.literal(OLD_OPENING)} {calls} {rules.literal(OLD_CLOSING)}"


FORMAT = ToolFormat(
    "minimax_m2",
    signs=((START, INVOKE),),
    openers=(START,),
    steps=_steps,
    markers=(START, END),
    calls=_calls,
)
OLD_FORMAT = ToolFormat(
    "minimax", signs=((OLD,),), openers=(OLD,), steps=_old_steps, markers=(OLD, OLD_END), calls=_old_calls
)
