"""Anthropic's content blocks as messages of a chat, and its tools as a chat's.

An assistant's thinking, text and tool_use blocks are one message; each tool_result is a message of its own, before the
words that come with it.
"""

import json
from typing import Any

from quire.base.errors import RequestError
from quire.server.conversation.translate import Content, Turn, function_tool, joined, read_content, read_role

ROLES = ("user", "assistant", "system")
TEXTS = ("text",)


def turns_of(raw: object) -> list[Turn]:
    """The messages; several in a row by the same role are one. Raises RequestError that names the block."""
    if not isinstance(raw, list):
        raise RequestError("messages must be a list of messages.", "messages", "invalid_type")
    if not raw:
        raise RequestError("messages must hold at least one message.", "messages")
    turns: list[Turn] = []
    for index, message in enumerate(raw):
        path = f"messages[{index}]"
        if not isinstance(message, dict):
            raise RequestError(f"{path} must be an object with 'role' and 'content'.", path, "invalid_type")
        role = read_role(message, path, ROLES)
        for turn in _message(role, message.get("content"), f"{path}.content"):
            _add(turns, turn)
    return turns


def tools_of(raw: object) -> object:
    """Tools as a chat's; what is no list is judged there."""
    if not isinstance(raw, list):
        return raw
    return [_tool(tool, f"tools[{index}]") for index, tool in enumerate(raw)]


def choice_of(choice: object) -> tuple[object, bool | None]:
    """`tool_choice` as a chat's, and whether calls may be parallel."""
    if choice is None:
        return None, None
    kind = choice.get("type") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or kind not in ("auto", "any", "tool", "none"):
        raise RequestError("tool_choice.type must be auto, any, tool or none.", "tool_choice")
    parallel = False if choice.get("disable_parallel_tool_use") is True else None
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}, parallel
    return "required" if kind == "any" else kind, parallel


def _tool(tool: object, path: str) -> object:
    if not isinstance(tool, dict):
        return tool
    if tool.get("type") not in (None, "custom"):
        kind = str(tool["type"])[:40]
        raise RequestError(
            f"{path}.type {kind!r} is not supported; this server takes tools with an input_schema only.",
            f"{path}.type",
            "unsupported_parameter",
        )
    return function_tool(*(tool.get(key) for key in ("name", "description", "input_schema", "strict")))


def _message(role: str, content: object, path: str) -> list[Turn]:
    if not isinstance(content, list) or not any(
        isinstance(block, dict) and block.get("type") != "text" for block in content
    ):
        return [{"role": role, "content": read_content(content, path, TEXTS)}]
    if role == "assistant":
        return [_answer(content, path)]
    turns: list[Turn] = []
    for index, block in enumerate(content):
        place = f"{path}[{index}]"
        if isinstance(block, dict) and block.get("type") == "tool_result" and role == "user":
            turns.append(_result(block, place))
        else:
            turns.append({"role": role, "content": _text(block, place)})
    return turns


def _answer(content: list[Any], path: str) -> Turn:
    turn: Turn = {"role": "assistant", "content": None}
    for index, block in enumerate(content):
        place = f"{path}[{index}]"
        match block.get("type") if isinstance(block, dict) else None:
            case "tool_use":
                function = {"name": _word(block, "name", place), "arguments": _input(block, place)}
                call: dict[str, object] = {"id": _word(block, "id", place), "type": "function", "function": function}
                turn.setdefault("tool_calls", []).append(call)
            case "thinking":
                thought = block.get("thinking")
                if not isinstance(thought, str):
                    raise RequestError(f"{place}.thinking must be a text.", f"{place}.thinking", "invalid_type")
                turn["reasoning_content"] = turn.get("reasoning_content", "") + thought
            case "redacted_thinking":
                pass
            case _:
                turn["content"] = joined(turn["content"], _text(block, place))
    if turn["content"] is None and "tool_calls" not in turn:
        turn["content"] = ""
    return turn


def _result(block: dict[str, Any], path: str) -> Turn:
    given = block.get("content")
    content: Content = "" if given is None or given == [] else read_content(given, f"{path}.content", TEXTS)
    if block.get("is_error") is True:
        content = joined("Error: ", content)
    return {"role": "tool", "tool_call_id": _word(block, "tool_use_id", path), "content": content}


def _add(turns: list[Turn], turn: Turn) -> None:
    last = turns[-1] if turns else None
    plain = last is not None and not ({"tool_calls", "reasoning_content"} & (last.keys() | turn.keys()))
    if last is not None and plain and last["role"] == turn["role"] != "tool":
        last["content"] = joined(last["content"], turn["content"])
    else:
        turns.append(turn)


def _text(block: object, path: str) -> Content:
    # As the only block of a list, so that its error names it; the path is put right.
    try:
        return read_content([block], path, TEXTS)
    except RequestError as error:
        raise RequestError(
            error.message.replace(f"{path}[0]", path), (error.param or "").replace(f"{path}[0]", path), error.code
        ) from None


def _word(block: dict[str, Any], key: str, path: str) -> str:
    value = block.get(key)
    if not isinstance(value, str) or not value:
        raise RequestError(f"{path}.{key} must be a text.", f"{path}.{key}", "invalid_type")
    return value


def _input(block: dict[str, Any], path: str) -> str:
    value = block.get("input")
    if not isinstance(value, dict):
        raise RequestError(f"{path}.input must be an object.", f"{path}.input", "invalid_type")
    return json.dumps(value, ensure_ascii=False)
