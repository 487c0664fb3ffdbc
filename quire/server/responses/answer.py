"""`Answer`: one response while it is made, and how it is written: whole, as typed events, and for the store."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from quire.messages.outputs import CompletionOutput, RequestOutput
from quire.messages.params import SamplingParams
from quire.server.conversation.blocks import Block, Blocks, Change
from quire.server.conversation.translate import Turn
from quire.server.errors import ApiError
from quire.server.generation import Items, Usage
from quire.server.responses.items import item_of, part_of, turn_of
from quire.server.responses.schema import ResponsesRequest
from quire.server.sse import named_event
from quire.server.store import Kept, Place, Store

PREFIXES = {"thoughts": "rs", "text": "msg", "call": "fc"}
WORDS = {"thoughts": "reasoning_text", "text": "output_text"}
"""What the events of a part are called."""

ERROR_CODE = "server_error"
"""The one code of OpenAI's closed set that fits a failure of the engine."""


@dataclass(slots=True)
class Answer:
    """One response while it is made, and how it is written.

    Attributes:
        asked: the request.
        turns: the conversation before this answer, without instructions.
        params: the sampling in effect.
        model: its name in the API.
        owner: who may fetch the response, see `auth.owner_of`.
        store: where it is put when it has ended, unless the request forbids.
        blocks: fresh; they become the items.
    """

    asked: ResponsesRequest
    turns: list[Turn]
    params: SamplingParams
    model: str
    owner: bytes
    store: Store
    blocks: Blocks
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    status: str = "in_progress"
    _ids: dict[int, str] = field(default_factory=dict)
    _created: int = field(default_factory=lambda: int(time.time()))
    _ended: int | None = None
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
        self.blocks.end_block()
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

    async def events(self, items: Items) -> AsyncGenerator[bytes, None]:
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
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _news(self, completion: CompletionOutput) -> bytes:
        cut = completion.finish_reason == "length"
        rendered = [self._change(change, "incomplete" if cut else "completed") for change in self._take(completion)]
        if completion.finished():
            status = "incomplete" if cut else "completed"
            # In the store before the client hears of the end, as it may ask for it at once.
            self._close(status)
            rendered.append(self._event(f"response.{status}", response=self._response()))
        return b"".join(rendered)

    def _change(self, change: Change, status: str) -> bytes:
        block = change.block
        item = {"item_id": self._id(block), "output_index": block.index}
        if change.act == "grow":
            if block.kind == "call":
                return self._event("response.function_call_arguments.delta", **item, delta=change.text)
            told = {**item, "content_index": 0, "delta": change.text}
            return self._event(f"response.{WORDS[block.kind]}.delta", **told, **_logprobs(block))
        if change.act == "open":
            return self._opened(block, item)
        last = block is self.blocks.all[-1]
        return self._closed(block, item, "incomplete" if block.broken else status if last else "completed")

    def _opened(self, block: Block, where: dict[str, object]) -> bytes:
        # What the block holds by now is told by the events that follow.
        empty = Block(block.index, block.kind, block.name, block.id)
        item = item_of(empty, self._id(block), "in_progress")
        if block.kind == "call":
            return self._event("response.output_item.added", output_index=block.index, item=item)
        added = self._event("response.output_item.added", output_index=block.index, item={**item, "content": []})
        return added + self._event("response.content_part.added", **where, content_index=0, part=part_of(empty))

    def _closed(self, block: Block, where: dict[str, object], status: str) -> bytes:
        text = block.text
        if block.kind == "call":
            done = self._event("response.function_call_arguments.done", **where, name=block.name, arguments=text)
        else:
            where = {**where, "content_index": 0}
            done = self._event(f"response.{WORDS[block.kind]}.done", **where, text=text, **_logprobs(block))
            done += self._event("response.content_part.done", **where, part=part_of(block))
        item = item_of(block, self._id(block), status)
        return done + self._event("response.output_item.done", output_index=block.index, item=item)

    def _id(self, block: Block) -> str:
        return self._ids.setdefault(block.index, f"{PREFIXES[block.kind]}_{uuid.uuid4().hex}")

    def _event(self, kind: str, **fields: object) -> bytes:
        self._events += 1
        return named_event(kind, {"sequence_number": self._events - 1, **fields})

    def _take(self, completion: CompletionOutput) -> list[Change]:
        self._usage.completion_tokens += len(completion.token_ids)
        self._usage.reasoning_tokens += self.blocks.reasoning_tokens(completion)
        return self.blocks.take(completion)

    def _close(self, status: str) -> None:
        self.status = status
        self._ended = int(time.time())
        if self.asked.store is not False:
            turns = [*self.turns, turn_of(self.blocks.all)]
            whole = status in ("completed", "incomplete")
            self.store.put(self.place, Kept(self.body(), msgspec.json.encode(turns) if whole else b""))

    def _output(self) -> list[dict[str, object]]:
        """The items; while the answer is being made nobody is shown any."""
        if self._ended is None:
            return []
        cut = "completed" if self.status == "completed" else "incomplete"
        blocks = self.blocks.all
        return [
            item_of(
                block, self._id(block), "incomplete" if block.broken else cut if block is blocks[-1] else "completed"
            )
            for block in blocks
        ]

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
            "text": {"format": (asked.text or {}).get("format") or {"type": "text"}},
            "reasoning": {"effort": (asked.reasoning or {}).get("effort"), "summary": None},
            "tools": asked.tools or [],
            "tool_choice": asked.tool_choice or "auto",
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "truncation": "disabled",
        }

    def _counts(self) -> dict[str, object]:
        usage = self._usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }


def _logprobs(block: Block) -> dict[str, object]:
    """Events of text have a field for them; they are not told here."""
    return {"logprobs": []} if block.kind == "text" else {}
