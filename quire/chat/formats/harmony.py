"""Harmony (gpt-oss): an answer of messages, each on a channel: thoughts on `analysis`, words on `final`, calls on
`commentary` with a recipient, `<|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}<|call|>`.
"""

import re
from collections.abc import Sequence

from quire.chat.events import Tools
from quire.chat.formats.base import ToolFormat
from quire.chat.grammar import Rules, Tool
from quire.chat.reader import Done, MalformedError, Peek, Say, Space, Start, Steps, Take, Until, Value, need

START, END, MESSAGE, CHANNEL = "<|start|>", "<|end|>", "<|message|>", "<|channel|>"
CONSTRAIN, CALL, RETURN = "<|constrain|>", "<|call|>", "<|return|>"
ENDS = (END, CALL, RETURN)
FUNCTIONS = "functions."

_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([\w.\-]+)")


def _steps(tools: Tools) -> Steps:
    header = need((yield Take((START, CHANNEL))))
    header += need((yield Until((MESSAGE, *ENDS))))
    need((yield Take((MESSAGE,))))
    channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
    if channel is None:
        raise MalformedError
    if recipient is not None and recipient[1].startswith(FUNCTIONS):
        yield Space()
        if (yield Peek()) != "{":
            raise MalformedError
        yield Start(need(recipient[1].removeprefix(FUNCTIONS) or None))
        need((yield Value(write=True)))
        yield Done()
        yield Space()
    else:
        yield Say((*ENDS, START), thoughts=channel[1] == "analysis")
    yield Take(ENDS)


def _calls(rules: Rules, tools: Sequence[Tool], several: bool) -> str:
    """One call in any case: the end of a call is the end of the answer."""
    bodies = []
    for tool in tools:
        head = f"{FUNCTIONS}{tool.name} {CONSTRAIN}json{MESSAGE}"
        bodies.append(f"{rules.literal(head)} {rules.json(tool)}")
    return f"{rules.literal(CHANNEL + 'commentary to=')} {rules.one_of(bodies)}"


FORMAT = ToolFormat(
    "harmony",
    signs=((CHANNEL, MESSAGE, FUNCTIONS),),
    openers=(START, CHANNEL),
    steps=_steps,
    markers=(START, END, MESSAGE, CHANNEL, CONSTRAIN, CALL, RETURN),
    calls=_calls,
)
