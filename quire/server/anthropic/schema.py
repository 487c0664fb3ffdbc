"""The fields of Anthropic's requests, and their conversation as a chat.

As with OpenAI's: harmless fields are ignored, unknown ones are ignored with one warning, and those that would change
the answer are refused.
"""

from quire.base.errors import RequestError
from quire.server.anthropic.blocks import TEXTS, choice_of, tools_of, turns_of
from quire.server.conversation.frame import limits_thoughts
from quire.server.conversation.reasoning import has_switch
from quire.server.conversation.schema import ChatRequest
from quire.server.conversation.translate import Extras, as_chat, read_content, refused_fields, renamed
from quire.server.fields import IGNORED, NOTHING
from quire.server.service import Service


class CountRequest(Extras, kw_only=True):
    """POST /v1/messages/count_tokens. `messages` and `system` are read by `chat_of`."""

    messages: object
    system: object = None
    stop_sequences: list[str] | None = None
    tools: object = None
    tool_choice: object = None
    thinking: dict[str, object] | None = None
    output_config: dict[str, object] | None = None
    output_format: object = None


class MessagesRequest(CountRequest, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int


IGNORED_HERE = IGNORED | {
    *("cache_control", "inference_geo", "speed", "diagnostics", "user_profile_id", "workspace_id", "betas"),
    *("anthropic_version", "context_management"),
}

REFUSED_HERE = refused_fields(
    MessagesRequest,
    {
        **dict.fromkeys(("container", "mcp_servers"), NOTHING),
        "stop": NOTHING,
    },
)

NAMES = {
    "prompt": "messages",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "enable_thinking": "thinking",
    "thinking_token_budget": "thinking.budget_tokens",
}
"""What fields of a chat are called here."""


def chat_of(asked: CountRequest, service: Service, max_tokens: int | None) -> ChatRequest:
    """The request as a chat. A conversation that ends with the assistant's words is continued. Raises RequestError."""
    turns = turns_of(asked.messages)
    continued = turns[-1]["role"] == "assistant" and "tool_calls" not in turns[-1]
    if asked.system is not None and asked.system != []:
        turns.insert(0, {"role": "system", "content": read_content(asked.system, "system", TEXTS)})
    choice, parallel = choice_of(asked.tool_choice)
    tools = tools_of(asked.tools or None)
    thinks, budget = _thinking(asked.thinking, service)
    return as_chat(
        asked,
        messages=turns,
        max_tokens=max_tokens,
        stop=asked.stop_sequences,
        continue_final_message=continued,
        tools=tools,
        tool_choice=None if tools is None and choice == "auto" else choice,
        parallel_tool_calls=parallel,
        enable_thinking=thinks,
        thinking_token_budget=budget,
        response_format=_form(asked),
    )


def renamed_here(error: RequestError) -> RequestError:
    """An error about a field of the chat, told with the name that the field has here."""
    param = error.param or ""
    if not param.startswith("tools["):
        return renamed(error, NAMES)
    own = param.replace(".function.parameters", ".input_schema").replace(".function", "")
    return RequestError(error.message.replace(param, own, 1), own, error.code)


def _thinking(wanted: dict[str, object] | None, service: Service) -> tuple[bool | None, int | None]:
    """Whether to think, and for how many tokens at most; a model that cannot be told does as it does."""
    kind = None if wanted is None else wanted.get("type")
    if wanted is None or kind is None:
        return None, None
    if kind not in ("enabled", "disabled", "adaptive"):
        raise RequestError("thinking.type must be enabled, disabled or adaptive.", "thinking")
    budget = wanted.get("budget_tokens")
    if not isinstance(budget, int | None) or isinstance(budget, bool) or (budget is not None and budget < 1):
        raise RequestError("thinking.budget_tokens must be a number of tokens, at least 1.", "thinking.budget_tokens")
    thinks = service.reasoning_format is not None
    on = kind != "disabled" if has_switch(service) else None
    return on, budget if thinks and kind == "enabled" and limits_thoughts(service) else None


def _form(asked: CountRequest) -> object:
    """A schema for the answer, under the newer or the older name, as a chat's `response_format`."""
    form = (asked.output_config or {}).get("format") or asked.output_format
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise RequestError(
            "output_config.format must be {'type': 'json_schema', 'schema': {...}}.", "output_config.format"
        )
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": form["schema"]}}
