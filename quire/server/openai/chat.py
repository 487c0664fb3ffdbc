"""POST /v1/chat/completions: a conversation in, the next message out, whole or as a stream of chunks."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import RequestError
from quire.messages.outputs import CompletionOutput, RequestOutput
from quire.server.conversation.answer_parser import AnswerParser, ChoiceParser, answer_parser_for
from quire.server.conversation.job import about_messages, chat_job
from quire.server.conversation.schema import ChatRequest
from quire.server.conversation.structured import own_field
from quire.server.conversation.tools import read_tool_set
from quire.server.generation import Items, Usage, admitted, collect
from quire.server.jobs import answer_id
from quire.server.openai.chunks import Chunks
from quire.server.openai.logprobs import chat_logprobs, prompt_logprobs
from quire.server.openai.message import Delta, deltas_of, finish_reason_of, message_of
from quire.server.openai.schema import read_generating
from quire.server.service import Service, service_of
from quire.server.sse import KEEP_ALIVE_S, EventStream, Frame
from quire.server.watch import Watch


async def chat_completions(request: Request) -> Response:
    """Serve one request; see the module."""
    service = service_of(request)
    asked = await read_generating(request, ChatRequest)
    tool_set = read_tool_set(asked, service)
    async with Watch(request.receive, service.open_watches):
        job = await chat_job(request, asked, tool_set)
        parser = answer_parser_for(service, tool_set, job, tell=asked.include_reasoning is not False)
        chat = Chat(answer_id("chatcmpl", asked.request_id), service, asked, parser)
        try:
            if asked.stream:
                items = await admitted(service, job, KEEP_ALIVE_S)
                return EventStream(chat.chunks(items), service.open_watches)
            (output,) = await collect(service, job)
        except RequestError as error:
            raise about_messages(own_field(error, asked)) from None
    return Response(msgspec.json.encode(chat.whole(output)), media_type="application/json")


@dataclass(slots=True)
class Chat:
    """One answer being written."""

    id: str
    service: Service
    asked: ChatRequest
    parser: AnswerParser | None = None

    def whole(self, output: RequestOutput) -> dict[str, object]:
        """The answer in one piece."""
        usage = Usage(completion_tokens=sum(len(completion.token_ids) for completion in output.outputs))
        usage.add_prompt(output)
        answer = {
            **self._head("chat.completion"),
            "choices": [self._choice(completion, usage) for completion in output.outputs],
            "usage": usage.as_json(),
            "prompt_logprobs": prompt_logprobs(output),
        }
        return {**answer, "prompt_token_ids": output.prompt_token_ids} if self.asked.return_token_ids else answer

    async def chunks(self, items: Items) -> AsyncGenerator[bytes, None]:
        """The answer as events."""
        writer = ChunkWriter(self._head("chat.completion.chunk"), self.asked, self.service, self.parser)
        async with aclosing(items):
            yield b"".join([writer.first(index) for index in range(self.asked.n or 1)])
            async for _, output in items:
                if rendered := writer.news(output):
                    yield rendered
        if writer.options.include_usage:
            yield writer.last()

    def _head(self, kind: str) -> dict[str, object]:
        service = self.service
        return {
            "id": self.id,
            "object": kind,
            "created": int(time.time()),
            "model": service.model_name,
            "system_fingerprint": service.fingerprint,
        }

    def _choice(self, completion: CompletionOutput, usage: Usage) -> dict[str, object]:
        choice_parser = self.parser.choice_parser() if self.parser else None
        usage.reasoning_tokens += choice_parser.reasoning_tokens(completion) if choice_parser else 0
        message: Delta = {"role": "assistant", "content": completion.text, "refusal": None}
        choice = {
            "index": completion.index,
            "message": message_of(choice_parser, completion) if choice_parser else message,
            "logprobs": chat_logprobs(completion, self.asked.top_logprobs or 0, self.service.engine.tokenizer),
            "finish_reason": finish_reason_of(choice_parser, completion) if choice_parser else completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        return {**choice, "token_ids": completion.token_ids} if self.asked.return_token_ids else choice


class ChunkWriter(Chunks):
    """Renders the chunks of one stream.

    Nearly every chunk differs from the one before only in its text, so everything around the text is rendered once.
    """

    def __init__(
        self, head: dict[str, object], asked: ChatRequest, service: Service, parser: AnswerParser | None
    ) -> None:
        super().__init__(head, asked.stream_options)
        self._asked = asked
        self._tokenizer = service.engine.tokenizer
        self._prompt_seen = False
        self._plain = not (asked.logprobs or asked.return_token_ids or self.options.continuous_usage_stats)
        self._choice_parsers = [parser.choice_parser() for _ in range(asked.n or 1)] if parser else []
        self._frames = [Frame(self._chunk(index, {"content": Frame.MARK})) for index in range(asked.n or 1)]

    def first(self, index: int) -> bytes:
        """The chunk that opens a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def news(self, output: RequestOutput) -> bytes:
        """Chunks for what is new; empty if nothing is to be told yet."""
        if not self._prompt_seen:
            self._prompt_seen = True
            self._usage.add_prompt(output)
        return b"".join([self._completion(completion) for completion in output.outputs])

    def _completion(self, completion: CompletionOutput) -> bytes:
        self._usage.completion_tokens += len(completion.token_ids)
        if self._choice_parsers:
            choice_parser = self._choice_parsers[completion.index]
            self._usage.reasoning_tokens += choice_parser.reasoning_tokens(completion)
            return self._parsed(completion, choice_parser)
        rendered = b""
        if self._plain:
            if completion.text:
                rendered = self._frames[completion.index].around(completion.text)
        elif completion.text or completion.token_ids:
            rendered = self._detailed(completion, {"content": completion.text})
        return rendered + self._ending(completion, completion.finish_reason)

    def _parsed(self, completion: CompletionOutput, choice_parser: ChoiceParser) -> bytes:
        """Chunks of content, reasoning and calls; what tells of tokens goes with the first, which may be empty."""
        deltas = deltas_of(choice_parser, completion)
        rendered: list[bytes] = []
        if not self._plain and completion.token_ids:
            rendered.append(self._detailed(completion, deltas.pop(0) if deltas else {}))
        rendered += [self._chunk(completion.index, delta) for delta in deltas]
        return b"".join([*rendered, self._ending(completion, finish_reason_of(choice_parser, completion))])

    def _ending(self, completion: CompletionOutput, reason: str | None) -> bytes:
        if reason is None:
            return b""
        return self._chunk(completion.index, {}, finish_reason=reason, stop_reason=completion.stop_reason)

    def _detailed(self, completion: CompletionOutput, delta: dict[str, object]) -> bytes:
        more: dict[str, object] = {
            "logprobs": chat_logprobs(completion, self._asked.top_logprobs or 0, self._tokenizer)
        }
        if self._asked.return_token_ids:
            more["token_ids"] = completion.token_ids
        return self._chunk(completion.index, delta, **more)

    def _chunk(self, index: int, delta: dict[str, object], **more: object) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return self._chunk_of(choice)
