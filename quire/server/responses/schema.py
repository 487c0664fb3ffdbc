"""The fields of POST /v1/responses, and what they are as a chat.

Items of `input` are read in `items.py`. Whatever else Responses knows (tools that run on a server, files,
server-side conversations) would change the answer and is refused by name.
"""

from quire.base.errors import RequestError
from quire.server.conversation.schema import ChatRequest
from quire.server.conversation.translate import (
    Content,
    Extras,
    Turn,
    as_chat,
    function_tool,
    joined,
    refused_fields,
    renamed,
)
from quire.server.fields import IGNORED, NOTHING

RULES = ("system", "developer")
FORMS = ("text", "json_object", "json_schema")
LOGPROBS = "message.output_text.logprobs"

MAX_PAIRS = 16
MAX_KEY_CHARS = 64
MAX_VALUE_CHARS = 512


class ResponsesRequest(Extras, kw_only=True):
    """POST /v1/responses. `input` is read by `turns_of`. `stream_options` can only ask for padding: there is none."""

    input: object
    instructions: str | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    text: dict[str, object] | None = None
    reasoning: dict[str, object] | None = None
    tools: object = None
    tool_choice: object = None
    parallel_tool_calls: bool | None = None
    thinking_token_budget: int | None = None
    stream_options: object = None


IGNORED_HERE = IGNORED | {"max_tool_calls", "prompt_cache_options", "access_programs"}

REFUSED_HERE = refused_fields(
    ResponsesRequest,
    {
        "truncation": (None, "disabled"),
        **dict.fromkeys(("conversation", "prompt", "context_management", "moderation"), NOTHING),
    },
)

NAMES = {
    "prompt": "input",
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""What fields of a chat are called here."""


def check_served(asked: ResponsesRequest) -> None:
    """Raise the RequestError for what is asked inside of a field and is not served."""
    if asked.background and asked.stream:
        raise _unserved("stream", "stream is not supported together with background; leave one out.")
    if asked.background and asked.store is False:
        raise RequestError("background needs store: the response is fetched later. Leave out store: false.", "store")
    if LOGPROBS in (asked.include or ()):
        raise _unserved("include", f"include: {LOGPROBS} is not supported yet; leave it out.")
    if (asked.text or {}).get("verbosity") not in (None, "medium"):
        raise _unserved("text.verbosity", "text.verbosity is not supported yet; leave it out.")
    _check_metadata(asked.metadata or {})


def chat_of(asked: ResponsesRequest, turns: list[Turn]) -> ChatRequest:
    """The request as a chat. Instructions and the rules that a conversation begins with are one message."""
    if asked.instructions is not None:
        first, rest = turns[0], turns
        content: Content = asked.instructions
        if first["role"] in RULES:
            rest = turns[1:]
            content = joined(content, first["content"])
        turns = [{"role": "system", "content": content}, *rest]
    effort = (asked.reasoning or {}).get("effort")
    if not isinstance(effort, str | None):
        raise RequestError("reasoning.effort must be a text.", "reasoning.effort", "invalid_type")
    tools, choice = asked.tools or None, asked.tool_choice
    return as_chat(
        asked,
        messages=turns,
        max_tokens=asked.max_output_tokens,
        tools=_tools(tools),
        # The client's library names a choice whether there are tools or not.
        tool_choice=None if tools is None and choice == "auto" else _choice(choice),
        parallel_tool_calls=asked.parallel_tool_calls,
        response_format=_form((asked.text or {}).get("format")),
        reasoning_effort=effort,
        thinking_token_budget=asked.thinking_token_budget,
    )


def _tools(raw: object) -> object:
    """Functions, which are flat here, as a chat's; whatever else is there is judged with them."""
    if not isinstance(raw, list):
        return raw
    for number, tool in enumerate(raw):
        if isinstance(tool, dict) and tool.get("type") != "function":
            kind = str(tool.get("type"))[:40]
            message = f"tools[{number}].type {kind!r} is not supported; this server takes functions only."
            raise _unserved(f"tools[{number}].type", message)
    keys = ("name", "description", "parameters", "strict")
    return [function_tool(*(tool.get(key) for key in keys)) if isinstance(tool, dict) else tool for tool in raw]


def _choice(choice: object) -> object:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        tools = choice.get("tools")
        allowed = [_choice(tool) for tool in tools] if isinstance(tools, list) else tools
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": allowed}}
    return choice


def _form(format: object) -> object:
    if format is None:
        return None
    kind = format.get("type") if isinstance(format, dict) else None
    if not isinstance(format, dict) or kind not in FORMS:
        raise RequestError(f"text.format must have a type of {', '.join(FORMS)}.", "text.format")
    if kind != "json_schema":
        return {"type": kind}
    return {"type": kind, "json_schema": {key: value for key, value in format.items() if key != "type"}}


def renamed_here(error: RequestError) -> RequestError:
    """An error about a field of the chat, told with the name that the field has in Responses."""
    if (error.param or "").startswith("tools["):
        return RequestError(
            error.message.replace(".function", "", 1), (error.param or "").replace(".function", ""), error.code
        )
    return renamed(error, NAMES)


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > MAX_PAIRS:
        raise RequestError(f"metadata takes at most {MAX_PAIRS} pairs.", "metadata")
    if any(len(key) > MAX_KEY_CHARS or len(value) > MAX_VALUE_CHARS for key, value in metadata.items()):
        raise RequestError(
            f"metadata takes keys of up to {MAX_KEY_CHARS} characters and values of up to {MAX_VALUE_CHARS}.",
            "metadata",
        )


def _unserved(param: str, message: str) -> RequestError:
    return RequestError(message, param, "unsupported_parameter")
