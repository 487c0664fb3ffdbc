"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's form of a chat, whole or as a stream of named events."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import RequestError
from quire.messages.outputs import CompletionOutput, RequestOutput
from quire.server.anthropic.errors import error_event
from quire.server.anthropic.schema import IGNORED_HERE, NAMES, REFUSED_HERE, CountRequest, MessagesRequest, chat_of
from quire.server.body import read_json
from quire.server.generation import Item, Usage, admitted, collect
from quire.server.openai.chat import chat_job
from quire.server.openai.prompts import render_chat
from quire.server.openai.schema import check_model, read
from quire.server.openai.tools import Offer
from quire.server.service import service_of
from quire.server.sse import KEEP_ALIVE_S, Ending, EventStream, Frame, named_event
from quire.server.translate import renamed
from quire.server.watch import Watch

ENDING = Ending(error_event)


async def messages(request: Request) -> Response:
    """Serve one request; see the module."""
    service = service_of(request)
    body = await read_json(request, service.config.max_body_bytes)
    asked = read(MessagesRequest, body, service, REFUSED_HERE, IGNORED_HERE)
    check_model(asked.model, service)
    service.check_ready()
    writer = Writer(service.model_name, asked.max_tokens)
    async with Watch(request.receive, service.open_watches):
        try:
            job = await chat_job(chat_of(asked, asked.max_tokens), service, Offer())
            if asked.stream:
                items = await admitted(service, job, KEEP_ALIVE_S)
                return EventStream(writer.events(items), service.open_watches, ENDING)
            (output,) = await collect(service, job)
        except RequestError as error:
            raise renamed(error, NAMES) from None
    return Response(msgspec.json.encode(writer.whole(output)), media_type="application/json")


async def count_tokens(request: Request) -> Response:
    """How many tokens the same messages would be as a prompt."""
    service = service_of(request)
    body = await read_json(request, service.config.max_body_bytes)
    asked = read(CountRequest, body, service, REFUSED_HERE, IGNORED_HERE | {"max_tokens"})
    check_model(asked.model, service)
    ids = await render_chat(chat_of(asked, None), service)
    return Response(msgspec.json.encode({"input_tokens": len(ids)}), media_type="application/json")


@dataclass(slots=True)
class Writer:
    """Writes one answer.

    Attributes:
        model: its name in the API.
        max_tokens: as asked; an answer cut before is cut by the end of the context.
    """

    model: str
    max_tokens: int
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    _usage: Usage = field(default_factory=Usage)

    def whole(self, output: RequestOutput) -> dict[str, object]:
        """The answer in one piece."""
        (completion,) = output.outputs
        self._usage.add_prompt(output)
        self._usage.completion_tokens = len(completion.token_ids)
        return self._message([_text(completion.text)], self._ended(completion))

    async def events(self, items: AsyncGenerator[Item, None]) -> AsyncGenerator[bytes, None]:
        """The answer as events."""
        frame = Frame(
            named_event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": Frame.MARK}})
        )
        begun = False
        async with aclosing(items):
            async for _, output in items:
                rendered = b"" if begun else self._begin(output)
                begun = True
                for completion in output.outputs:
                    self._usage.completion_tokens += len(completion.token_ids)
                    rendered += frame.around(completion.text) if completion.text else b""
                    rendered += self._end(completion) if completion.finished() else b""
                if rendered:
                    yield rendered

    def _begin(self, output: RequestOutput) -> bytes:
        """What comes before the first text. It tells the prompt's tokens, which the first output brings."""
        self._usage.add_prompt(output)
        return b"".join(
            [
                named_event("message_start", {"message": self._message([], {"stop_reason": None})}),
                named_event("content_block_start", {"index": 0, "content_block": _text("")}),
                named_event("ping", {}),
            ]
        )

    def _end(self, completion: CompletionOutput) -> bytes:
        return b"".join(
            [
                named_event("content_block_stop", {"index": 0}),
                named_event("message_delta", {"delta": self._ended(completion), "usage": self._counts()}),
                named_event("message_stop", {}),
            ]
        )

    def _message(self, content: list[dict[str, object]], ended: dict[str, object]) -> dict[str, object]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_sequence": None,
            **ended,
            "usage": self._counts(),
        }

    def _ended(self, completion: CompletionOutput) -> dict[str, object]:
        if completion.finish_reason == "length":
            whole = self._usage.completion_tokens >= self.max_tokens
            return {"stop_reason": "max_tokens" if whole else "model_context_window_exceeded", "stop_sequence": None}
        if isinstance(completion.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": completion.stop_reason}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def _counts(self) -> dict[str, object]:
        """Tokens as Anthropic counts them: those from the cache are not among `input_tokens`."""
        usage = self._usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
        }


def _text(text: str) -> dict[str, object]:
    return {"type": "text", "text": text, "citations": None}
