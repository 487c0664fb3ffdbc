"""`Writer`: one answer in Anthropic's form, whole or as named events."""

import json
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from quire.messages.outputs import CompletionOutput, RequestOutput
from quire.server.conversation.blocks import Block, Blocks, Change
from quire.server.generation import Items, Usage
from quire.server.sse import Frame, named_event


@dataclass(slots=True)
class Writer:
    """Writes one answer.

    Attributes:
        model: its name in the API.
        max_tokens: as asked; an answer cut before is cut by the end of the context.
        blocks: fresh.
    """

    model: str
    max_tokens: int
    blocks: Blocks
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    _usage: Usage = field(default_factory=Usage)
    _frame: Frame | None = None

    def whole(self, output: RequestOutput) -> dict[str, object]:
        """The answer in one piece."""
        (completion,) = output.outputs
        self._usage.add_prompt(output)
        self._usage.completion_tokens = len(completion.token_ids)
        self.blocks.take(completion)
        self.blocks.end_block()
        return self._message([_block(block, block.text) for block in self.blocks.all], self._ended(completion))

    async def events(self, items: Items) -> AsyncGenerator[bytes, None]:
        """The answer as events."""
        begun = False
        async with aclosing(items):
            async for _, output in items:
                rendered = b"" if begun else self._begin(output)
                for completion in output.outputs:
                    self._usage.completion_tokens += len(completion.token_ids)
                    for change in self.blocks.take(completion):
                        rendered += self._change(change)
                        if not begun:
                            rendered += named_event("ping", {})
                            begun = True
                    rendered += self._end(completion) if completion.finished() else b""
                if not begun:
                    begun = True
                    rendered += named_event("ping", {})
                if rendered:
                    yield rendered

    def _begin(self, output: RequestOutput) -> bytes:
        """What comes before the first block. It tells the prompt's tokens, which the first output brings."""
        self._usage.add_prompt(output)
        return named_event("message_start", {"message": self._message([], {"stop_reason": None})})

    def _change(self, change: Change) -> bytes:
        block = change.block
        if change.act == "open":
            kind, name = _DELTAS[block.kind]
            delta: dict[str, object] = {"index": block.index, "delta": {"type": kind, name: Frame.MARK}}
            self._frame = Frame(named_event("content_block_delta", delta))
            return named_event("content_block_start", {"index": block.index, "content_block": _block(block, "")})
        if change.act == "grow":
            assert self._frame is not None
            return self._frame.around(change.text)
        stop = named_event("content_block_stop", {"index": block.index})
        if block.kind != "thoughts":
            return stop
        signature: dict[str, object] = {"index": block.index, "delta": {"type": "signature_delta", "signature": ""}}
        return named_event("content_block_delta", signature) + stop

    def _end(self, completion: CompletionOutput) -> bytes:
        delta: dict[str, object] = {"delta": self._ended(completion), "usage": self._counts()}
        return named_event("message_delta", delta) + named_event("message_stop", {})

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
        return {"stop_reason": "tool_use" if self.blocks.called() else "end_turn", "stop_sequence": None}

    def _counts(self) -> dict[str, object]:
        """Tokens as Anthropic counts them: those from the cache are not among `input_tokens`."""
        usage = self._usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
        }


_DELTAS = {
    "text": ("text_delta", "text"),
    "thoughts": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


def _block(block: Block, text: str) -> dict[str, object]:
    match block.kind:
        case "thoughts":
            return {"type": "thinking", "thinking": text, "signature": ""}
        case "call":
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": _object(text)}
        case _:
            return {"type": "text", "text": text, "citations": None}


def _object(text: str) -> object:
    """Arguments as an object; an answer that was cut has the beginning of one, which nobody can use."""
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}
