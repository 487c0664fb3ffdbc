"""From the younger dialects to a chat: what Responses and Anthropic's messages share on their way to a `ChatRequest`.

Each dialect reads its own fields and writes its own answers; in between it is a chat completion, so that there is one
way to run a request. Nothing here knows an endpoint.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, NotRequired, TypedDict

import msgspec

from quire.base.errors import RequestError
from quire.server.conversation.schema import ChatRequest
from quire.server.fields import NOTHING, REFUSED

Content = str | list[dict[str, str]]
"""What a chat template takes: a text, or text parts."""


class Turn(TypedDict):
    """A message of a chat."""

    role: str
    content: Content | None
    tool_calls: NotRequired[list[dict[str, object]]]
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]


class Extras(msgspec.Struct, kw_only=True):
    """Fields that every dialect takes, under the names and with the meaning of chat completions."""

    model: str
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    cache_salt: str | None = None
    priority: int | None = None


def refused_fields(kind: type[Extras], more: Mapping[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """What `kind` must not silently ignore: whatever changes the answer of a chat, and `more`."""
    of_chats = set(ChatRequest.__struct_fields__) - set(kind.__struct_fields__)
    harmless = {"n": (None, 1), "parallel_tool_calls": (None, True, False)}
    harmless |= {"include_reasoning": (None, True), "tool_choice": (None,), "tools": (None,)}
    return {**REFUSED, **dict.fromkeys(of_chats, NOTHING), **harmless, **more}


def as_chat(asked: Extras, **own: object) -> ChatRequest:
    """`asked` as a chat: fields of the same name as they are, `own` in place of the others."""
    same = {name: value for name, value in msgspec.structs.asdict(asked).items() if name in Extras.__struct_fields__}
    return msgspec.convert({**same, **own}, ChatRequest)


def read_content(content: object, path: str, kinds: Collection[str]) -> Content:
    """The content of a message.

    Args:
        content: a text, or a list of parts that hold one.
        path: of the field, for errors.
        kinds: types of parts that are texts.

    Raises:
        RequestError: with the field at fault.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{path} must be a text or a list of parts.", path, "invalid_type")
    if not content:
        raise RequestError(f"{path} is an empty list; send a text or at least one part.", path)
    return [_part(part, f"{path}[{index}]", kinds) for index, part in enumerate(content)]


def joined(first: Content | None, second: Content | None) -> Content:
    """Two contents as one."""
    return [*_parts(first), *_parts(second)]


def function_tool(name: object, description: object, parameters: object, strict: object) -> dict[str, Any]:
    """A function as a chat's tool; what is None is left out."""
    fields = {"name": name, "description": description, "parameters": parameters, "strict": strict}
    function = {key: value for key, value in fields.items() if value is not None}
    return {"type": "function", "function": function}


def read_role(message: Mapping[str, object], path: str, roles: Collection[str]) -> str:
    """The role of a message, one of `roles`. Raises RequestError."""
    role = message.get("role")
    if not isinstance(role, str) or role not in roles:
        raise RequestError(f"{path}.role must be one of {', '.join(roles)}.", f"{path}.role")
    return role


def renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """An error about a field of the chat, told with the name that the field has in the dialect."""
    own = names.get(error.param or "")
    if own is None:
        return error
    return RequestError(re.sub(rf"\A{error.param}\b", own, error.message), own, error.code)


def _part(raw: object, path: str, kinds: Collection[str]) -> dict[str, str]:
    kind = raw.get("type") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or kind not in kinds:
        shown = f"{kind[:40]!r} is not supported" if isinstance(kind, str) else "is missing"
        allowed = ", ".join(map(repr, kinds))
        raise RequestError(f"{path}.type {shown}; this model takes texts only: {allowed}.", f"{path}.type")
    if not isinstance(raw.get("text"), str):
        raise RequestError(f"{path}.text must be a text.", f"{path}.text", "invalid_type")
    return {"type": "text", "text": raw["text"]}


def _parts(content: Content | None) -> list[dict[str, str]]:
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
