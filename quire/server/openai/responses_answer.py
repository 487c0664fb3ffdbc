"""`Answer`: one response while it is made, and how it is written: whole, as typed events, and for the store."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from quire.messages.outputs import CompletionOutput, RequestOutput
from quire.messages.params import SamplingParams
from quire.server.errors import ApiError
from quire.server.generation import Item, Usage
from quire.server.openai.responses_schema import ResponsesRequest
from quire.server.sse import named_event
from quire.server.store import Kept, Place, Store
from quire.server.translate import Turn

WHERE = {"output_index": 0, "content_index": 0}
"""There is one item with one part."""

ERROR_CODE = "server_error"
"""The one code of OpenAI's closed set that fits a failure of the engine."""


@dataclass(slots=True)
class Answer:
    """See the module.

    Attributes:
        asked: the request.
        turns: the conversation before this answer, without instructions.
        params: the sampling in effect.
        model: its name in the API.
        owner: who may fetch the response, see `auth.owner_of`.
        store: where it is put when it has ended, unless the request forbids.
    """

    asked: ResponsesRequest
    turns: list[Turn]
    params: SamplingParams
    model: str
    owner: bytes
    store: Store
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    status: str = "in_progress"
    _message_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    _created: int = field(default_factory=lambda: int(time.time()))
    _ended: int | None = None
    _texts: list[str] = field(default_factory=list)
    _usage: Usage = field(default_factory=Usage)
    _error: dict[str, object] | None = None
    _events: int = 0

    @property
    def place(self) -> Place:
        """Under which it is stored."""
        return self.owner, self.id

    def finish(self, output: RequestOutput) -> None:
        """The whole text has come at once."""
        (completion,) = output.outputs
        self._usage.add_prompt(output)
        self._take(completion)
        self._close("incomplete" if completion.finish_reason == "length" else "completed")

    def fail(self, error: ApiError) -> None:
        """It ends with an error."""
        self._error = {"code": ERROR_CODE, "message": error.message}
        self._close("failed")

    def cancel(self) -> None:
        """It ends because the client said so."""
        self._close("cancelled")

    def body(self) -> bytes:
        """The response as JSON."""
        return msgspec.json.encode(self._response())

    async def events(self, items: AsyncGenerator[Item, None]) -> AsyncGenerator[bytes, None]:
        """The response as events."""
        prompt_seen = False
        async with aclosing(items):
            yield self._begin()
            async for _, output in items:
                if not prompt_seen:
                    prompt_seen = True
                    self._usage.add_prompt(output)
                if rendered := b"".join([self._news(completion) for completion in output.outputs]):
                    yield rendered

    def failed_events(self, error: ApiError) -> bytes:
        """The last events of a stream that fails."""
        self.fail(error)
        told = {"code": error.code, "message": error.message, "param": error.param}
        return self._event("error", **told) + self._event("response.failed", response=self._response())

    def _begin(self) -> bytes:
        response = self._response()
        return b"".join(
            [
                self._event("response.created", response=response),
                self._event("response.in_progress", response=response),
                self._event("response.output_item.added", output_index=0, item=self._message([], "in_progress")),
                self._event("response.content_part.added", item_id=self._message_id, **WHERE, part=_part("")),
            ]
        )

    def _news(self, completion: CompletionOutput) -> bytes:
        self._take(completion)
        rendered = b""
        if completion.text:
            about = {"item_id": self._message_id, **WHERE, "delta": completion.text, "logprobs": []}
            rendered = self._event("response.output_text.delta", **about)
        return rendered + self._end(completion) if completion.finished() else rendered

    def _end(self, completion: CompletionOutput) -> bytes:
        status = "incomplete" if completion.finish_reason == "length" else "completed"
        # In the store before the client hears of the end, as it may ask for it at once.
        self._close(status)
        text, where = self._text(), {"item_id": self._message_id, **WHERE}
        item = self._message([_part(text)], status)
        return b"".join(
            [
                self._event("response.output_text.done", **where, text=text, logprobs=[]),
                self._event("response.content_part.done", **where, part=_part(text)),
                self._event("response.output_item.done", output_index=0, item=item),
                self._event(f"response.{status}", response=self._response()),
            ]
        )

    def _event(self, kind: str, **fields: object) -> bytes:
        self._events += 1
        return named_event(kind, {"sequence_number": self._events - 1, **fields})

    def _take(self, completion: CompletionOutput) -> None:
        self._usage.completion_tokens += len(completion.token_ids)
        if completion.text:
            self._texts.append(completion.text)

    def _text(self) -> str:
        self._texts = ["".join(self._texts)]
        return self._texts[0]

    def _close(self, status: str) -> None:
        self.status = status
        self._ended = int(time.time())
        if self.asked.store is not False:
            turns = [*self.turns, Turn(role="assistant", content=self._text())]
            whole = status in ("completed", "incomplete")
            self.store.put(self.place, Kept(self.body(), msgspec.json.encode(turns) if whole else b""))

    def _message(self, content: list[dict[str, object]], status: str) -> dict[str, object]:
        return {"type": "message", "id": self._message_id, "status": status, "role": "assistant", "content": content}

    def _output(self) -> list[dict[str, object]]:
        text = self._text()
        if self._ended is None or not (text or self.status in ("completed", "incomplete")):
            return []
        return [self._message([_part(text)], "completed" if self.status == "completed" else "incomplete")]

    def _response(self) -> dict[str, object]:
        asked, params = self.asked, self.params
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": self._ended if self.status == "completed" else None,
            "status": self.status,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if self.status == "incomplete" else None,
            "model": self.model,
            "output": self._output(),
            "usage": None if self._ended is None else self._counts(),
            "instructions": asked.instructions,
            "previous_response_id": asked.previous_response_id,
            "metadata": asked.metadata or {},
            "max_output_tokens": asked.max_output_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "background": bool(asked.background),
            "store": asked.store is not False,
            "text": {"format": {"type": "text"}},
            "reasoning": {"effort": None, "summary": None},
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "truncation": "disabled",
        }

    def _counts(self) -> dict[str, object]:
        usage = self._usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
