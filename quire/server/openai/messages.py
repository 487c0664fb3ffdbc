"""The messages of a chat: checked by OpenAI's rules and brought into the plain form that templates know."""

from typing import Any

from quire.base.errors import RequestError
from quire.server.errors import clip

ROLES = ("developer", "system", "user", "assistant")
MAX_MESSAGES = 4096
MAX_NAME_CHARS = 256

Message = dict[str, Any]


def read_messages(messages: object, *, developer_role: bool) -> list[Message]:
    """The conversation with every content as a string.

    Args:
        messages: as they came.
        developer_role: whether the template knows that role; otherwise it is called system.
    """
    if not isinstance(messages, list):
        raise RequestError("messages must be a list.", "messages", "invalid_type")
    if not messages:
        raise RequestError("messages must hold at least one message.", "messages")
    if len(messages) > MAX_MESSAGES:
        raise RequestError(f"messages must hold at most {MAX_MESSAGES} messages.", "messages", "too_many_messages")
    return [_message(message, f"messages[{i}]", developer_role) for i, message in enumerate(messages)]


def _message(message: object, path: str, developer_role: bool) -> Message:
    if not isinstance(message, dict):
        raise RequestError(f"{path} must be an object with role and content.", path, "invalid_type")
    role = message.get("role")
    if role in ("tool", "function") or any(message.get(name) for name in ("tool_calls", "function_call")):
        raise RequestError(f"{path}: tool calls are not supported yet.", path, "unsupported_parameter")
    if role not in ROLES:
        known = ", ".join(ROLES)
        raise RequestError(f"{path}.role must be one of {known}.", f"{path}.role")
    checked = {key: value for key, value in message.items() if value is not None}
    checked["role"] = "system" if role == "developer" and not developer_role else role
    checked["content"] = _content(message.get("content"), f"{path}.content")
    name = message.get("name")
    if name is not None and (not isinstance(name, str) or len(name) > MAX_NAME_CHARS):
        raise RequestError(f"{path}.name must be a string of at most {MAX_NAME_CHARS} characters.", f"{path}.name")
    return checked


def _content(content: object, path: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{path} must be a string or a list of parts.", path, "invalid_type")
    if not content:
        raise RequestError(f"{path} must hold at least one part.", f"{path}[0].type")
    return "\n".join(_part(part, f"{path}[{i}]") for i, part in enumerate(content))


def _part(part: object, path: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind != "text":
        shown = f"{clip(kind, 40)!r}" if isinstance(kind, str) else "none"
        raise RequestError(
            f"{path}.type is {shown}; only parts of type 'text' are supported.", f"{path}.type", "unsupported_content"
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise RequestError(f"{path}.text must be a string.", f"{path}.text", "invalid_type")
    return text
