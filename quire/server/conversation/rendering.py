"""`render_chat`: a conversation as token ids, by the model's chat template.

The template is code of strangers, and a long conversation takes long: both are for text workers (`server/text`).
"""

from functools import partial
from typing import Any, Protocol

from quire.base.errors import RequestError
from quire.chat.messages import Message, parse_messages
from quire.messages.validate import check_room
from quire.server.conversation.schema import Generating
from quire.server.service import Service
from quire.server.text.lengths import check_length
from quire.server.text.texts import Fits

RESERVED = frozenset(
    {"self", "messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"}
)
"""Names in a template that chat_template_kwargs must not set."""


class Conversation(Protocol):
    """The fields of a request that say what the template writes."""

    messages: object
    add_special_tokens: bool | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: dict[str, object] | None


async def render_chat(
    asked: Conversation,
    service: Service,
    tools: list[dict[str, Any]] | None = None,
    fits: Fits | None = None,
) -> list[int]:
    """A conversation as token ids, by the model's template, which is told of `tools`. Raises RequestError."""
    template = service.template
    if template is None:
        raise RequestError(
            "This model has no chat template: use /v1/completions, or start the server with --chat-template FILE.",
            "messages",
            "no_chat_template",
        )
    if asked.add_special_tokens:
        raise RequestError("add_special_tokens: the chat template writes special tokens itself.", "add_special_tokens")
    messages = parse_messages(asked.messages)
    continued = bool(asked.continue_final_message)
    if continued and asked.add_generation_prompt:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other.", "continue_final_message"
        )
    options = {
        **({} if tools is None else {"tools": tools}),
        "add_generation_prompt": not continued if asked.add_generation_prompt is None else asked.add_generation_prompt,
        "continue_final_message": continued,
        **_template_kwargs(asked.chat_template_kwargs or {}),
    }
    check_length(sum(map(_chars, messages)), "messages")
    return await service.texts.render(messages, options, fits)


def _template_kwargs(kwargs: dict[str, object]) -> dict[str, object]:
    if taken := sorted(RESERVED & kwargs.keys()):
        raise RequestError(f"chat_template_kwargs must not set {taken[0]}.", "chat_template_kwargs")
    return kwargs


def _chars(message: Message) -> int:
    content = message["content"]
    return sum(len(part["text"]) for part in content) if isinstance(content, list) else len(content or "")


def fits_of(asked: Generating, service: Service) -> Fits | None:
    """Refuses what the validator will refuse, if no tokens are cut away before."""
    return None if asked.truncate_prompt_tokens is not None else partial(check_room, facts=service.engine.facts)
