"""The fields of POST /v1/responses, and what they are as a chat.

Items of `input` are messages with texts. Whatever else Responses knows (tools, reasoning, files, server-side
conversations) would change the answer and is refused by name.
"""

from quire.base.errors import RequestError
from quire.server.openai.schema import IGNORED, NOTHING, ChatRequest
from quire.server.translate import Content, Extras, Turn, as_chat, joined, read_content, read_role, refused_fields

ROLES = ("user", "assistant", "system", "developer")
RULES = ("system", "developer")
TEXTS = ("input_text", "output_text", "text")
LOGPROBS = "message.output_text.logprobs"

MAX_PAIRS = 16
MAX_KEY_CHARS = 64
MAX_VALUE_CHARS = 512


class ResponsesRequest(Extras, kw_only=True):
    """POST /v1/responses. `input` is read by `turns_of`; `stream_options` can only ask for padding: there is none."""

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
    stream_options: object = None


IGNORED_HERE = IGNORED | {"max_tool_calls", "prompt_cache_options", "access_programs"}

REFUSED_HERE = refused_fields(
    ResponsesRequest,
    {
        "tools": NOTHING,
        "tool_choice": (None, "none", "auto"),
        "truncation": (None, "disabled"),
        **dict.fromkeys(("conversation", "prompt", "context_management", "moderation"), NOTHING),
    },
)

NAMES = {"prompt": "input", "messages": "input", "max_tokens": "max_output_tokens"}
"""What fields of a chat are called here."""


def check_served(asked: ResponsesRequest) -> None:
    """Raise the RequestError for what is asked inside of a field and is not served."""
    if asked.background and asked.stream:
        raise _unserved("stream", "stream is not supported together with background; leave one out.")
    if asked.background and asked.store is False:
        raise RequestError("background needs store: the response is fetched later. Leave out store: false.", "store")
    if LOGPROBS in (asked.include or ()):
        raise _unserved("include", f"include: {LOGPROBS} is not supported yet; leave it out.")
    if (asked.text or {}).get("format") not in (None, {"type": "text"}):
        raise _unserved("text.format", "text.format is not supported yet, except {'type': 'text'}; leave it out.")
    if (asked.text or {}).get("verbosity") not in (None, "medium"):
        raise _unserved("text.verbosity", "text.verbosity is not supported yet; leave it out.")
    if (asked.reasoning or {}).get("effort") not in (None, "none"):
        raise _unserved("reasoning.effort", "reasoning.effort is not supported yet; leave it out.")
    _check_metadata(asked.metadata or {})


def turns_of(raw: object) -> list[Turn]:
    """`input` as messages. Raises RequestError that names the item."""
    if isinstance(raw, str):
        return [{"role": "user", "content": raw}]
    if not isinstance(raw, list):
        raise RequestError("input must be a text or a list of items.", "input", "invalid_type")
    if not raw:
        raise RequestError("input must hold at least one item.", "input")
    return [_turn(item, f"input[{index}]") for index, item in enumerate(raw)]


def chat_of(asked: ResponsesRequest, turns: list[Turn]) -> ChatRequest:
    """The request as a chat. Instructions and the rules that a conversation begins with are one message."""
    if asked.instructions is not None:
        first, rest = turns[0], turns
        content: Content = asked.instructions
        if first["role"] in RULES:
            rest = turns[1:]
            content = joined(content, first["content"])
        turns = [{"role": "system", "content": content}, *rest]
    return as_chat(asked, messages=turns, max_tokens=asked.max_output_tokens)


def _turn(item: object, path: str) -> Turn:
    if not isinstance(item, dict):
        raise RequestError(f"{path} must be an object with 'role' and 'content'.", path, "invalid_type")
    kind = item.get("type", "message")
    if kind != "message":
        shown = f"{kind[:40]!r} " if isinstance(kind, str) else ""
        raise _unserved(f"{path}.type", f"{path}.type {shown}is not supported; this server takes messages only.")
    role = read_role(item, path, ROLES)
    return {"role": role, "content": read_content(item.get("content"), f"{path}.content", TEXTS)}


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
