"""DeepSeek V3 and R1 (a name and a block of JSON), V3.1 (a name and JSON), between special tokens."""

from collections.abc import Sequence

from quire.chat.events import Tools
from quire.chat.formats.base import ToolFormat
from quire.chat.grammar import Rules, Tool
from quire.chat.reader import Done, MalformedError, Peek, Space, Start, Steps, Take, Until, Value, need

ALL, ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
ONE, ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
BLOCK, BLOCK_END = "```json", "```"


def _steps(tools: Tools) -> Steps:
    yield Take((ALL,))
    yield Space()
    following = need((yield Take((ONE,))))
    while following == ONE:
        name = need((yield Until((SEPARATOR,)))).strip()
        yield Take((SEPARATOR,))
        if name == "function" and (yield Peek()) != "{":
            name = need((yield Until((BLOCK, "\n")))).strip()
            yield Space()
            need((yield Take((BLOCK,))))
        yield Space()
        if not name or (yield Peek()) != "{":
            raise MalformedError
        yield Start(name)
        need((yield Value(write=True)))
        yield Done()
        yield Space()
        yield Take((BLOCK_END,))
        yield Space()
        yield Take((ONE_END,))
        yield Space()
        following = (yield Take((ONE, ALL_END))) or ""


def _calls(rules: Rules, tools: Sequence[Tool], several: bool) -> str:
    fenced = BLOCK in rules.template
    bodies = []
    for tool in tools:
        head = f"function{SEPARATOR}{tool.name}\n{BLOCK}\n" if fenced else f"{tool.name}{SEPARATOR}"
        bodies.append(f"{rules.literal(head)} {rules.json(tool)}")
    end, between = (f"\n{BLOCK_END}{ONE_END}", "\n") if fenced else (ONE_END, "")
    call = f"{rules.literal(ONE)} {rules.one_of(bodies)} {rules.literal(end)}"
    return f"{rules.literal(ALL)} {rules.several(call, between, several)} {rules.literal(ALL_END)}"


FORMAT = ToolFormat(
    "deepseek",
    signs=((ALL,), (ONE,)),
    openers=(ALL, ONE),
    steps=_steps,
    markers=(ALL, ALL_END, ONE, ONE_END, SEPARATOR),
    calls=_calls,
)
