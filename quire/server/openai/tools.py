"""The tools of a chat request, checked: `tools`, `tool_choice`, `parallel_tool_calls`.

What a client may rely on is in docs/conformance.md. Called by chat.py; how calls are written is `quire/chat/formats`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from quire.base.errors import RequestError
from quire.chat.events import Tools
from quire.server.openai.schema import ChatRequest
from quire.server.service import Service

MAX_TOOLS = 128
TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "not")


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools that a request lets the model call.

    Attributes:
        listed: for the template, as the client wrote them; None for none.
        schemas: name to the schema of the parameters.
        parallel: whether an answer may hold several calls.
    """

    listed: list[dict[str, Any]] | None = None
    schemas: Tools = field(default_factory=dict)
    parallel: bool = True


def read_offer(asked: ChatRequest, service: Service) -> Offer:
    """The tools on offer. Raises RequestError."""
    listed = None if asked.tools is None else _tools(asked.tools)
    names = [tool["function"]["name"] for tool in listed or []]
    chosen = _chosen(asked.tool_choice, names)
    if listed is None or not chosen:
        return Offer()
    if service.tool_format is None:
        raise RequestError(
            "tools are not supported by this model: its chat template shows no known way to call them. "
            "Leave tools out, or start the server with --tool-call-parser.",
            "tools",
            "unsupported_parameter",
        )
    offered = [tool for tool in listed if tool["function"]["name"] in chosen]
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in offered}
    return Offer(offered, schemas, parallel=asked.parallel_tool_calls is not False)


def _tools(raw: object) -> list[dict[str, Any]]:
    if not isinstance(raw, list):
        _refuse("tools", "must be a list", "invalid_type")
    if not raw:
        _refuse("tools", "must not be empty; leave it out to offer none")
    if len(raw) > MAX_TOOLS:
        _refuse("tools", f"holds {len(raw)} tools; at most {MAX_TOOLS} are allowed")
    seen: set[str] = set()
    return [_tool(tool, f"tools[{index}]", seen) for index, tool in enumerate(raw)]


def _tool(raw: object, path: str, seen: set[str]) -> dict[str, Any]:
    if not isinstance(raw, dict):
        _refuse(path, "must be an object such as {'type': 'function', 'function': {...}}", "invalid_type")
    if raw.get("type") != "function":
        _refuse(f"{path}.type", "must be 'function'; other tools are not supported")
    function = raw.get("function")
    if not isinstance(function, dict):
        _refuse(f"{path}.function", "must be an object with a name", "invalid_type")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        _refuse(f"{path}.function.name", "must be 1 to 64 letters, digits, '_' and '-'")
    if name in seen:
        _refuse(f"{path}.function.name", "names a tool that is in the list already")
    seen.add(name)
    if not isinstance(function.get("description", ""), str | None):
        _refuse(f"{path}.function.description", "must be a text", "invalid_type")
    if not isinstance(function.get("strict"), bool | None):
        _refuse(f"{path}.function.strict", "must be true or false", "invalid_type")
    parameters = function.get("parameters")
    if parameters is not None:
        _check_schema(parameters, f"{path}.function.parameters")
    return raw


def _check_schema(schema: object, path: str) -> None:
    """Check what any reader of the schema trips over: unknown types, and schemas that are none."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        _refuse(path, "must be a JSON schema, an object", "invalid_schema")
    types = schema.get("type", [])
    for one in types if isinstance(types, list) else [types]:
        if not isinstance(one, str) or one not in TYPES:
            _refuse(f"{path}.type", f"must be one of {', '.join(sorted(TYPES))}", "invalid_schema")
    for key in _SCHEMAS_BY_NAME:
        below = schema.get(key, {})
        if not isinstance(below, Mapping):
            _refuse(f"{path}.{key}", "must be an object", "invalid_schema")
        for name, one in below.items():
            _check_schema(one, f"{path}.{key}.{name[:64]}")
    for key in _SCHEMA_LISTS:
        several = schema.get(key, [])
        if not isinstance(several, list):
            _refuse(f"{path}.{key}", "must be a list", "invalid_schema")
        for number, one in enumerate(several):
            _check_schema(one, f"{path}.{key}[{number}]")
    for key in _SCHEMAS:
        one = schema.get(key, True)
        for single in one if isinstance(one, list) else [one]:
            _check_schema(single, f"{path}.{key}")


def _chosen(choice: object, names: list[str]) -> set[str]:
    """Names of the tools that `tool_choice` leaves; none if the model must not call any."""
    if choice is None or choice == "auto":
        if choice is not None and not names:
            _refuse("tool_choice", "needs tools; leave it out or send tools")
        return set(names)
    if choice == "none":
        return set()
    if choice == "required":
        needed = names
    elif isinstance(choice, dict) and choice.get("type") == "function":
        needed = [_named(choice.get("function"))]
    elif isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return _allowed(choice.get("allowed_tools"), names)
    else:
        _refuse("tool_choice", "must be 'none', 'auto', 'required' or an object that names a function")
    if not needed or not set(needed) <= set(names):
        _refuse("tool_choice", "names a function that is not in tools" if names else "needs tools")
    raise RequestError(
        "tool_choice 'required' and named functions are not supported yet; use 'auto' or 'none'.",
        "tool_choice",
        "unsupported_parameter",
    )


def _allowed(raw: object, names: list[str]) -> set[str]:
    tools = raw.get("tools") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(tools, list) or not tools:
        _refuse("tool_choice", "of type 'allowed_tools' needs allowed_tools with mode and tools")
    if raw.get("mode") != "auto":
        raise RequestError(
            "tool_choice: allowed_tools with another mode than 'auto' is not supported yet.",
            "tool_choice",
            "unsupported_parameter",
        )
    allowed = {_named(tool.get("function") if isinstance(tool, dict) else None) for tool in tools}
    if not allowed <= set(names):
        _refuse("tool_choice", "names a function that is not in tools")
    return allowed


def _named(function: object) -> str:
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        _refuse("tool_choice", "must name a function: {'type': 'function', 'function': {'name': ...}}")
    return name


def _refuse(path: str, reason: str, code: str = "invalid_value") -> NoReturn:
    # A path may hold names of a client's making.
    shown = path if len(path) <= 200 else path[:200] + "..."
    raise RequestError(f"{shown} {reason}.", shown, code)
