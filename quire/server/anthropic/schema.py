"""The fields of Anthropic's requests, and their conversation as a chat.

As with OpenAI's: harmless fields are ignored, unknown ones are ignored with one warning, and those that would change
the answer are refused.
"""

from quire.base.errors import RequestError
from quire.server.openai.schema import IGNORED, NOTHING, ChatRequest
from quire.server.translate import Extras, Turn, as_chat, joined, read_content, read_role, refused_fields


class CountRequest(Extras, kw_only=True):
    """POST /v1/messages/count_tokens. `messages` and `system` are read by `chat_of`."""

    messages: object
    system: object = None
    stop_sequences: list[str] | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int


IGNORED_HERE = IGNORED | {
    *("cache_control", "inference_geo", "speed", "diagnostics", "user_profile_id", "workspace_id", "betas"),
    "anthropic_version",
}

REFUSED_HERE = refused_fields(
    MessagesRequest,
    {
        "tools": NOTHING,
        "tool_choice": (None, {"type": "none"}, {"type": "auto"}),
        "thinking": (None, {"type": "disabled"}),
        **dict.fromkeys(("output_config", "output_format", "container", "mcp_servers", "context_management"), NOTHING),
        "stop": NOTHING,
    },
)

ROLES = ("user", "assistant", "system")
TEXTS = ("text",)

NAMES = {"prompt": "messages", "stop": "stop_sequences"}
"""What fields of a chat are called here."""


def chat_of(asked: CountRequest, max_tokens: int | None) -> ChatRequest:
    """The request as a chat. A conversation that ends with the assistant is continued. Raises RequestError."""
    turns = _turns(asked.messages)
    continued = turns[-1]["role"] == "assistant"
    if asked.system is not None and asked.system != []:
        turns.insert(0, {"role": "system", "content": read_content(asked.system, "system", TEXTS)})
    return as_chat(
        asked,
        messages=turns,
        max_tokens=max_tokens,
        stop=asked.stop_sequences,
        continue_final_message=continued,
    )


def _turns(raw: object) -> list[Turn]:
    """The messages; several in a row by the same role are one."""
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
        new = read_content(message.get("content"), f"{path}.content", TEXTS)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = joined(turns[-1]["content"], new)
        else:
            turns.append({"role": role, "content": new})
    return turns
