"""The tools of a chat request, checked: `tools`, `tool_choice`, `parallel_tool_calls`.

What a client may rely on is in docs/conformance.md. How calls are written is `quire/chat/formats`.
"""

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from quire.base.errors import RequestError
from quire.chat.events import Tools
from quire.server.conversation.schema import ChatRequest
from quire.server.conversation.tool_schemas import check_schema
from quire.server.service import Service

MAX_TOOLS = 128

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolSet:
    """The tools that a request lets the model call.

    Attributes:
        listed: for the template, as the client wrote them; None for none.
        schemas: name to the schema of the parameters.
        parallel: whether an answer may hold several calls.
        required: the answer must be a call.
        named: the client has named the one function that is called.
        strict: names of the tools whose schemas are enforced in any case.
    """

    listed: list[dict[str, Any]] | None = None
    schemas: Tools = field(default_factory=dict)
    parallel: bool = True
    required: bool = False
    named: bool = False
    strict: frozenset[str] = frozenset()


def read_tool_set(asked: ChatRequest, service: Service) -> ToolSet:
    """The tools on offer. Raises RequestError."""
    listed = None if asked.tools is None else _tools(asked.tools)
    names = [tool["function"]["name"] for tool in listed or []]
    chosen, required = _chosen(asked.tool_choice, names)
    if listed is None or not chosen:
        return ToolSet()
    if service.tool_format is None:
        raise RequestError(
            "tools are not supported by this model: its chat template shows no known way to call them. "
            "Leave tools out, or start the server with --tool-call-parser.",
            "tools",
            "unsupported_parameter",
        )
    functions = [tool["function"] for tool in listed if tool["function"]["name"] in chosen]
    schemas = {function["name"]: function.get("parameters") or {} for function in functions}
    named = required and isinstance(asked.tool_choice, dict) and asked.tool_choice.get("type") == "function"
    return ToolSet(
        # Whoever names one function has all of them stand in the prompt, so that its cached prefix stays the same.
        listed if named else [tool for tool in listed if tool["function"]["name"] in chosen],
        schemas,
        parallel=asked.parallel_tool_calls is not False and not named,
        required=required,
        named=named,
        strict=frozenset(function["name"] for function in functions if function.get("strict")),
    )


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
        check_schema(parameters, f"{path}.function.parameters", _refuse_schema)
    return raw


def _chosen(choice: object, names: list[str]) -> tuple[set[str], bool]:
    """Names of the tools that `tool_choice` leaves, none if the model must not call any; and whether it must call."""
    if choice is None or choice == "auto":
        if choice is not None and not names:
            _refuse("tool_choice", "needs tools; leave it out or send tools")
        return set(names), False
    if choice == "none":
        return set(), False
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
    return set(needed), True


def _allowed(raw: object, names: list[str]) -> tuple[set[str], bool]:
    tools = raw.get("tools") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(tools, list) or not tools:
        _refuse("tool_choice", "of type 'allowed_tools' needs allowed_tools with mode and tools")
    if raw.get("mode") not in ("auto", "required"):
        _refuse("tool_choice", "of type 'allowed_tools' has the mode 'auto' or 'required'")
    allowed = {_named(tool.get("function") if isinstance(tool, dict) else None) for tool in tools}
    if not allowed <= set(names):
        _refuse("tool_choice", "names a function that is not in tools")
    return allowed, raw["mode"] == "required"


def _named(function: object) -> str:
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        _refuse("tool_choice", "must name a function: {'type': 'function', 'function': {'name': ...}}")
    return name


def _refuse(path: str, reason: str, code: str = "invalid_value") -> NoReturn:
    # A path may hold names of a client's making.
    shown = path if len(path) <= 200 else path[:200] + "..."
    raise RequestError(f"{shown} {reason}.", shown, code)


def _refuse_schema(path: str, reason: str) -> NoReturn:
    _refuse(path, reason, "invalid_schema")
