"""`ToolFormat` and `ReasoningFormat`: how a family writes. Made by the files beside this one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quire.chat.events import Tools
from quire.chat.grammar import Rules, Tool
from quire.chat.reader import Steps

Calls = Callable[[Rules, Sequence[Tool], bool], str]
"""Adds the rules of one call of one of the tools, or of several, and gives the expression for them."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How tool calls are written.

    Attributes:
        name: for --tool-call-parser.
        signs: a chat template that holds all texts of any of these groups writes this format.
        openers: texts that begin a call anywhere.
        bare: a character that begins a call where it is the first of the answer.
        steps: the parser, from the opener on.
        markers: texts that may be special tokens and must be seen.
        short_ids: the template wants call ids of nine letters and digits.
        calls: the grammar of calls; None where calls cannot be enforced.
    """

    name: str
    signs: tuple[tuple[str, ...], ...]
    openers: tuple[str, ...]
    steps: Callable[[Tools], Steps]
    bare: str = ""
    markers: tuple[str, ...] = ()
    short_ids: bool = False
    calls: Calls | None = None


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How thoughts are told from the answer.

    Attributes:
        name: for --reasoning-parser.
        start, end: around the thoughts, at the beginning of an answer. The prompt may hold `start` already.
        after: what the model writes between the end of its thoughts and whatever follows.
        lead: what it writes before words for the user.
        channels: the format that tells thoughts from words all through the answer, where one does; it finds calls too.
    """

    name: str
    start: str
    end: str
    after: str = ""
    lead: str = ""
    channels: ToolFormat | None = None
