"""Items of Responses: those of `input` as messages of a chat, the blocks of an answer as items.

Thoughts, words and calls of one answer are several items here and one message there.
"""

from typing import cast

from quire.base.errors import RequestError
from quire.server.conversation.blocks import Block
from quire.server.conversation.translate import Turn, read_content, read_role

ROLES = ("user", "assistant", "system", "developer")
TEXTS = ("input_text", "output_text", "text")
THOUGHTS = ("reasoning_text", "summary_text")


def turns_of(raw: object) -> list[Turn]:
    """`input` as messages. Raises RequestError that names the item."""
    if isinstance(raw, str):
        return [{"role": "user", "content": raw}]
    if not isinstance(raw, list):
        raise RequestError("input must be a text or a list of items.", "input", "invalid_type")
    if not raw:
        raise RequestError("input must hold at least one item.", "input")
    turns: list[Turn] = []
    for index, item in enumerate(raw):
        _add(turns, item, f"input[{index}]")
    return turns


def turn_of(blocks: list[Block]) -> Turn:
    """An answer as the message that it is in a chat."""
    text = "".join(block.text for block in blocks if block.kind == "text")
    turn: Turn = {"role": "assistant", "content": text}
    if thoughts := "".join(block.text for block in blocks if block.kind == "thoughts"):
        turn["reasoning_content"] = thoughts
    if calls := [
        _call(block.id, block.name, block.text) for block in blocks if block.kind == "call" and not block.broken
    ]:
        turn["tool_calls"] = calls
        turn["content"] = text or None
    return turn


def item_of(block: Block, id: str, status: str) -> dict[str, object]:
    """A block as an item."""
    match block.kind:
        case "thoughts":
            return {"type": "reasoning", "id": id, "summary": [], "content": [part_of(block)], "status": status}
        case "call":
            call = {"call_id": block.id, "name": block.name, "arguments": block.text}
            return {"type": "function_call", "id": id, **call, "status": status}
        case _:
            return {"type": "message", "id": id, "status": status, "role": "assistant", "content": [part_of(block)]}


def part_of(block: Block, text: str | None = None) -> dict[str, object]:
    """The one part of an item that has parts."""
    shown = block.text if text is None else text
    if block.kind == "thoughts":
        return {"type": "reasoning_text", "text": shown}
    return {"type": "output_text", "text": shown, "annotations": [], "logprobs": []}


def _add(turns: list[Turn], item: object, path: str) -> None:
    if not isinstance(item, dict):
        raise RequestError(f"{path} must be an object with 'role' and 'content'.", path, "invalid_type")
    match item.get("type", "message"):
        case "message":
            role = read_role(item, path, ROLES)
            content = read_content(item.get("content"), f"{path}.content", TEXTS)
            last = turns[-1] if turns and role == "assistant" else None
            if last is not None and last["role"] == "assistant" and last["content"] is None:
                last["content"] = content
            else:
                turns.append({"role": role, "content": content})
        case "reasoning":
            _answer(turns, new=True)["reasoning_content"] = _thoughts(item, path)
        case "function_call":
            id, name, arguments = (_word(item, key, path) for key in ("call_id", "name", "arguments"))
            _answer(turns).setdefault("tool_calls", []).append(_call(id, name, arguments))
        case "function_call_output":
            output = read_content(item.get("output"), f"{path}.output", TEXTS)
            turns.append({"role": "tool", "tool_call_id": _word(item, "call_id", path), "content": output})
        case kind:
            shown = f"{kind[:40]!r} " if isinstance(kind, str) else ""
            raise RequestError(
                f"{path}.type {shown}is not supported; this server takes messages, reasoning, function_call and "
                "function_call_output.",
                f"{path}.type",
                "unsupported_parameter",
            )


def _answer(turns: list[Turn], *, new: bool = False) -> Turn:
    """The assistant's message that an item belongs to."""
    if new or not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": None})
    return turns[-1]


def _thoughts(item: dict[str, object], path: str) -> str:
    parts = item.get("content") or item.get("summary") or []
    if parts == []:
        return ""
    content = read_content(parts, f"{path}.content", THOUGHTS)
    return "\n".join(part["text"] for part in cast(list[dict[str, str]], content))


def _word(item: dict[str, object], key: str, path: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise RequestError(f"{path}.{key} must be a text.", f"{path}.{key}", "invalid_type")
    return value


def _call(id: str, name: str, arguments: str) -> dict[str, object]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
