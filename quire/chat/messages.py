"""The messages of a conversation, checked: what comes from a client's JSON leaves here in one known form.

Errors name the field as the client wrote it (`messages[0].content[1].text`). Fields that only some templates read
(`name`, `tool_calls`, `reasoning_content`, ...) are passed on as they are. Called by the server; knows no template.
"""

from typing import Any, NoReturn

from quire.base.errors import RequestError

Message = dict[str, Any]
"""`role`, `content` (a text, a list of text parts, or None) and whatever else the client sent."""

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 4096


def parse_messages(raw: object) -> list[Message]:
    """The messages of a request.

    Args:
        raw: the value of `messages`, as JSON gave it.

    Returns:
        New dicts: `role` is one of ROLES, `content` is a text, a list of `{"type": "text", "text": ...}`, or None in an
        assistant message that calls tools. An assistant's `refusal` is its content where it has no other.

    Raises:
        RequestError: with the field at fault.
    """
    if not isinstance(raw, list):
        _refuse("messages", f"must be a list of messages, not {_kind(raw)}")
    if not raw:
        _refuse("messages", "must hold at least one message")
    check_count(raw)
    return [_message(message, f"messages[{index}]") for index, message in enumerate(raw)]


def check_count(raw: object) -> None:
    """Refuse a list of more messages than are allowed, before anything else is done with it. Raises RequestError."""
    if isinstance(raw, list) and len(raw) > MAX_MESSAGES:
        _refuse("messages", f"holds {len(raw)} messages; at most {MAX_MESSAGES} are allowed, shorten the conversation")


def _message(raw: object, path: str) -> Message:
    if not isinstance(raw, dict):
        _refuse(path, f"must be an object with 'role' and 'content', not {_kind(raw)}")
    role = raw.get("role")
    if not isinstance(role, str) or role not in ROLES:
        shown = "is missing" if "role" not in raw else f"{str(role)[:40]!r} is unknown"
        _refuse(f"{path}.role", f"{shown}; use one of {', '.join(ROLES)}")
    if not isinstance(raw.get("name", ""), str | None):
        _refuse(f"{path}.name", f"must be a text, not {_kind(raw['name'])}")
    return {**raw, "content": _content(raw, f"{path}.content")}


def _content(message: Message, path: str) -> str | list[dict[str, str]] | None:
    content = message.get("content")
    if content is None:
        if message["role"] == "assistant" and message.get("tool_calls"):
            return None
        if message["role"] == "assistant" and isinstance(message.get("refusal"), str):
            return _text(message["refusal"], path)
        _refuse(path, "is missing or null; send a text (it may be empty)")
    if isinstance(content, str):
        return _text(content, path)
    if not isinstance(content, list):
        _refuse(path, f"must be a text or a list of parts, not {_kind(content)}")
    if not content:
        _refuse(path, "is an empty list; send a text or at least one part")
    return [_part(part, f"{path}[{index}]", message["role"]) for index, part in enumerate(content)]


def _part(raw: object, path: str, role: str) -> dict[str, str]:
    if not isinstance(raw, dict):
        _refuse(path, f"must be an object such as {{'type': 'text', 'text': ...}}, not {_kind(raw)}")
    # What an assistant has refused with is what it has said.
    field = "refusal" if role == "assistant" and raw.get("type") == "refusal" else "text"
    if raw.get("type") != field:
        shown = f"{str(raw['type'])[:40]!r} is not supported" if "type" in raw else "is missing"
        _refuse(f"{path}.type", f"{shown}; this model takes parts of type 'text' only")
    text = raw.get(field)
    if not isinstance(text, str):
        _refuse(
            f"{path}.{field}", f"must be a text, not {_kind(text)}" if field in raw else "is missing; send the text"
        )
    return {"type": "text", "text": _text(text, f"{path}.{field}")}


def _text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse(path, "holds half of a surrogate pair (\\ud800-\\udfff); send valid Unicode")
    return text


def _kind(value: object) -> str:
    """The JSON name of a value's type."""
    names = {str: "a text", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def _refuse(path: str, reason: str) -> NoReturn:
    raise RequestError(f"{path} {reason}", param=path)
