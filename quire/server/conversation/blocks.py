"""`Blocks`: an answer as a row of blocks (thoughts, text, calls), as Responses and Anthropic's messages tell it.

Fed with completions; says which block opens, grows and closes. What a block looks like is the dialect's business.
"""

from dataclasses import dataclass, field
from typing import Literal

from quire.chat.events import Arguments, CallBroken, CallStart, Content, Event, Reasoning
from quire.messages.outputs import CompletionOutput
from quire.server.conversation.answer_parser import AnswerParser

Kind = Literal["thoughts", "text", "call"]


@dataclass(slots=True)
class Block:
    """A part of an answer.

    Attributes:
        index: from 0.
        name, id: of a call.
        broken: a call that turned out to be none.
    """

    index: int
    kind: Kind
    name: str = ""
    id: str = ""
    broken: bool = False
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its words, or the arguments of the call."""
        self.parts = ["".join(self.parts)]
        return self.parts[0]


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to a block; `text` is what it grows by."""

    act: Literal["open", "grow", "close"]
    block: Block
    text: str = ""


class Blocks:
    """An answer as a row of blocks: thoughts, text, calls of tools.

    Args:
        parser: what understands the answer; None if it is text and nothing else.
    """

    def __init__(self, parser: AnswerParser | None) -> None:
        self.all: list[Block] = []
        self._choice_parser = parser.choice_parser() if parser else None
        self._open: Block | None = None

    def take(self, completion: CompletionOutput) -> list[Change]:
        """What is new. At the end of the answer every block is closed, and there is at least one."""
        changes: list[Change] = []
        for event in self._events(completion):
            self._event(event, changes)
        if completion.finished():
            if not self.all:
                self._new("text", changes)
            self._close(changes)
        return changes

    def reasoning_tokens(self, completion: CompletionOutput) -> int:
        """How many of the new tokens are thoughts. To be called once per piece."""
        return self._choice_parser.reasoning_tokens(completion) if self._choice_parser else 0

    def called(self) -> bool:
        """Whether the answer holds a call."""
        return any(block.kind == "call" and not block.broken for block in self.all)

    def end_block(self) -> None:
        """The answer is told in one piece: calls that turned out to be none are the text that was written."""
        kept: list[Block] = []
        for block in self.all:
            if block.broken:
                continue
            if kept and kept[-1].kind == block.kind == "text":
                kept[-1].parts += block.parts
            else:
                kept.append(block)
        for index, block in enumerate(kept):
            block.index = index
        self.all = kept

    def _events(self, completion: CompletionOutput) -> list[Event]:
        if self._choice_parser is not None:
            return self._choice_parser.events(completion)
        return [Content(completion.text)] if completion.text else []

    def _event(self, event: Event, changes: list[Change]) -> None:
        match event:
            case Content(text):
                self._grow("text", text, changes)
            case Reasoning(text):
                self._grow("thoughts", text, changes)
            case CallStart(_, name):
                self._new("call", changes, name)
            case Arguments(_, text):
                self._grow("call", text, changes)
            case CallBroken(_, text):
                if self._open is not None:
                    self._open.broken = True
                self._grow("text", text, changes)

    def _grow(self, kind: Kind, text: str, changes: list[Change]) -> None:
        block = self._open
        if block is None or block.kind != kind:
            block = self._new(kind, changes)
        block.parts.append(text)
        changes.append(Change("grow", block, text))

    def _new(self, kind: Kind, changes: list[Change], name: str = "") -> Block:
        self._close(changes)
        id = self._choice_parser.call_id() if kind == "call" and self._choice_parser else ""
        block = self._open = Block(len(self.all), kind, name, id)
        self.all.append(block)
        changes.append(Change("open", block))
        return block

    def _close(self, changes: list[Change]) -> None:
        if self._open is not None:
            changes.append(Change("close", self._open))
            self._open = None
