"""From text to the parts of a message: content, reasoning and tool calls, whole or as deltas of a stream.

Used where a request offers tools or the model thinks aloud; other answers are text and never come here.
"""

import secrets
import string
from collections.abc import Iterator
from dataclasses import dataclass

from quire.chat.events import Arguments, CallBroken, CallStart, Content, Event, Reasoning, fold
from quire.chat.splitter import StreamSplitter
from quire.messages.outputs import CompletionOutput
from quire.server.generation import Job
from quire.server.openai.tools import Offer
from quire.server.service import Service

TAIL_TOKENS = 64
"""So many tokens at the end of a prompt show whether it has opened the thoughts."""

Delta = dict[str, object]


@dataclass(frozen=True, slots=True)
class Ear:
    """How to hear the answers of one request: makes a `Voice` per choice."""

    service: Service
    offer: Offer
    thinking: bool

    def voice(self) -> "Voice":
        """For one choice."""
        service = self.service
        tools = service.tool_format if self.offer.listed else None
        splitter = StreamSplitter(tools, service.reasoning_format, self.offer.schemas, thinking=self.thinking)
        return Voice(splitter, self.offer.parallel, short_ids=tools is not None and tools.short_ids)


def ear_for(service: Service, offer: Offer, job: Job) -> Ear | None:
    """What is needed to understand the answer to a job; None if it is text and nothing else, as by a grammar."""
    reasoning = service.reasoning_format
    if job.params.structured_outputs is not None or (reasoning is None and not offer.listed):
        return None
    prompt = job.prompts[0]
    tail = service.engine.tokenizer.decode(prompt[-TAIL_TOKENS:], skip_special_tokens=False) if reasoning else ""
    return Ear(service, offer, reasoning is not None and tail.rstrip().endswith(reasoning.start))


def shown_token_ids(service: Service, offer: Offer) -> list[int]:
    """Special tokens that must stay in the text because they mark calls or thoughts."""
    markers: list[str] = []
    if service.tool_format is not None and offer.listed:
        markers += service.tool_format.markers
    if service.reasoning_format is not None:
        markers += (service.reasoning_format.start, service.reasoning_format.end)
    tokenizer = service.engine.tokenizer
    found = [tokenizer.encode(marker, add_special_tokens=False) for marker in markers]
    return sorted({ids[0] for ids in found if len(ids) == 1 and ids[0] in tokenizer.special_ids})


class Voice:
    """One choice being understood.

    Args:
        splitter: fresh.
        parallel: False lets one call through.
        short_ids: make ids that the model's template takes.
    """

    def __init__(self, splitter: StreamSplitter, parallel: bool, *, short_ids: bool) -> None:
        self._splitter = splitter
        self._parallel = parallel
        self._short_ids = short_ids
        self._calls: set[int] = set()

    def message(self, completion: CompletionOutput) -> Delta:
        """The whole message of a finished completion."""
        speech = fold(self._events(completion))
        message: Delta = {"role": "assistant", "content": speech.content, "refusal": None}
        if speech.reasoning:
            message |= {"reasoning": speech.reasoning, "reasoning_content": speech.reasoning}
        if speech.calls:
            message["content"] = speech.content or None
            message["tool_calls"] = [
                {"id": self._id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in speech.calls
            ]
        return message

    def deltas(self, completion: CompletionOutput) -> list[Delta]:
        """What is new in a stream."""
        return [self._delta(event) for event in self._events(completion)]

    def finish_reason(self, completion: CompletionOutput) -> str | None:
        """Why it ended, in OpenAI's words: an answer that calls tools and was not cut ends with `tool_calls`."""
        return "tool_calls" if completion.finish_reason == "stop" and self._calls else completion.finish_reason

    def _events(self, completion: CompletionOutput) -> list[Event]:
        events = self._splitter.push(completion.text)
        if completion.finish_reason is not None:
            events += self._splitter.finish(cut=completion.finish_reason == "length")
        return list(self._let_through(events))

    def _let_through(self, events: list[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, CallStart) and (self._parallel or not self._calls):
                self._calls.add(event.index)
            if isinstance(event, CallStart | Arguments | CallBroken) and event.index not in self._calls:
                continue
            if isinstance(event, CallBroken):
                self._calls.discard(event.index)
            yield event

    def _delta(self, event: Event) -> Delta:
        match event:
            case Content(text) | CallBroken(_, text):
                return {"content": text}
            case Reasoning(text):
                return {"reasoning": text, "reasoning_content": text}
            case CallStart(index, name):
                function = {"name": name, "arguments": ""}
                return {"tool_calls": [{"index": index, "id": self._id(), "type": "function", "function": function}]}
            case Arguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}

    def _id(self) -> str:
        if self._short_ids:
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"
