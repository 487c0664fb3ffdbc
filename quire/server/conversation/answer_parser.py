"""From text to what it is: content, reasoning and tool calls, as events.

Used where a request offers tools or the model thinks aloud; other answers are text and never come here.
"""

import secrets
import string
from collections.abc import Iterator
from dataclasses import dataclass

from quire.chat.events import Arguments, CallBroken, CallStart, Event, Reasoning
from quire.chat.splitter import StreamSplitter
from quire.messages.outputs import CompletionOutput
from quire.server.conversation.reasoning import ReasoningCount, ReasoningState, reasoning_state_of
from quire.server.conversation.tools import ToolSet
from quire.server.generation import Job
from quire.server.service import Service


@dataclass(frozen=True, slots=True)
class AnswerParser:
    """How to read the answers of one request: makes a `ChoiceParser` per choice.

    Attributes:
        thinking: what the prompt says of thoughts.
        tell: whether the client wants the thoughts.
    """

    service: Service
    tool_set: ToolSet
    thinking: ReasoningState
    tell: bool = True

    def choice_parser(self) -> "ChoiceParser":
        """For one choice."""
        service = self.service
        reasoning = service.reasoning_format
        tools = service.tool_format if self.tool_set.listed else None
        thinks = reasoning if self.thinking is not ReasoningState.CLOSED else None
        if reasoning is not None and reasoning.channels is not None:
            tools, thinks = reasoning.channels, None
        splitter = StreamSplitter(tools, thinks, self.tool_set.schemas, thinking=self.thinking is ReasoningState.OPEN)
        count = ReasoningCount(reasoning, service.engine.tokenizer, self.thinking) if reasoning else None
        return ChoiceParser(self, splitter, count, short_ids=tools is not None and tools.short_ids)


def answer_parser_for(service: Service, tool_set: ToolSet, job: Job, *, tell: bool = True) -> AnswerParser | None:
    """What is needed to understand the answer to a job; None if it is text and nothing else."""
    if service.reasoning_format is None and not tool_set.listed:
        return None
    return AnswerParser(service, tool_set, reasoning_state_of(service, job.prompts[0]), tell)


def markers_of(service: Service, tool_set: ToolSet) -> list[str]:
    """Texts that mark calls or thoughts."""
    markers: list[str] = []
    reasoning = service.reasoning_format
    if service.tool_format is not None and tool_set.listed:
        markers += service.tool_format.markers
    if reasoning is not None and reasoning.channels is not None:
        markers += reasoning.channels.markers
    elif reasoning is not None:
        markers += (reasoning.start, reasoning.end)
    return markers


def shown_token_ids(service: Service, tool_set: ToolSet) -> list[int]:
    """Special tokens that must stay in the text because they mark calls or thoughts."""
    tokenizer = service.engine.tokenizer
    found = [tokenizer.encode(marker, add_special_tokens=False) for marker in markers_of(service, tool_set)]
    return sorted({ids[0] for ids in found if len(ids) == 1 and ids[0] in tokenizer.special_ids})


class ChoiceParser:
    """One choice being understood.

    Args:
        parser: whose request it answers.
        splitter: fresh.
        count: of the thoughts, if the model may have any.
        short_ids: make ids that the model's template takes.
    """

    def __init__(
        self, parser: AnswerParser, splitter: StreamSplitter, count: ReasoningCount | None, *, short_ids: bool
    ) -> None:
        self._parser = parser
        self._splitter = splitter
        self._count = count
        self._short_ids = short_ids
        self._calls: set[int] = set()

    def reasoning_tokens(self, completion: CompletionOutput) -> int:
        """How many of the new tokens are thoughts. To be called once per piece."""
        return 0 if self._count is None else self._count.take(completion.token_ids)

    def chose_to_call(self) -> bool:
        """Whether the answer calls tools, and the client has not said which."""
        return bool(self._calls) and not self._parser.tool_set.named

    def events(self, completion: CompletionOutput) -> list[Event]:
        """What is new, as events."""
        events = self._splitter.push(completion.text)
        if completion.finish_reason is not None:
            events += self._splitter.finish(cut=completion.finish_reason == "length")
        return list(self._let_through(events))

    def _let_through(self, events: list[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Reasoning) and not self._parser.tell:
                continue
            if isinstance(event, CallStart) and (self._parser.tool_set.parallel or not self._calls):
                self._calls.add(event.index)
            if isinstance(event, CallStart | Arguments | CallBroken) and event.index not in self._calls:
                continue
            if isinstance(event, CallBroken):
                self._calls.discard(event.index)
            yield event

    def call_id(self) -> str:
        """A new id for a call."""
        if self._short_ids:
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"
