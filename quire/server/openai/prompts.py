"""Prompts as token ids: the four forms of `prompt`, the rendered chat, and text of any length without blocking others.

What takes long, and the template, which is code of strangers, runs in text workers (`server/text`).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from quire.base.errors import RequestError
from quire.chat.messages import Message, parse_messages
from quire.messages.text import Encode
from quire.messages.validate import check_room
from quire.server.openai.middle import middle_prompt
from quire.server.openai.schema import ChatRequest, Generating, TokenizeRequest
from quire.server.service import Service
from quire.server.text.lengths import check_length
from quire.server.text.texts import Fits

MAX_PROMPTS = 1024
RESERVED = frozenset(
    {"self", "messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"}
)
"""Names in a template that chat_template_kwargs must not set."""


async def read_middles(
    prompt: object, suffix: str, add_special_tokens: bool, service: Service
) -> tuple[list[list[int]], list[int]]:
    """Token ids of prompts for what goes between each prompt and `suffix`, and tokens that end it."""
    check_length(len(suffix), "suffix")
    (*befores, after), _ = await encoded([*_listed(prompt), suffix], "prompt", Encode([], plain=True), service)
    check_length(len(suffix) * len(befores), "suffix")
    made = [middle_prompt(before, after, service, add_special_tokens=add_special_tokens) for before in befores]
    return [ids for ids, _ in made], made[0][1]


async def read_prompts(
    prompt: object, add_special_tokens: bool, service: Service, fits: Fits | None = None
) -> tuple[list[list[int]], list[str | None]]:
    """Token ids of each prompt, and its text if it came as text.

    Args:
        prompt: a string, a list of strings, a list of token ids or a list of such lists.
        fits: refuses long texts that have too many tokens.
    """
    return await encoded(_listed(prompt), "prompt", Encode([], special=add_special_tokens), service, fits)


def fits_of(asked: Generating, service: Service) -> Fits | None:
    """Refuses what the validator will refuse, if no tokens are cut away before."""
    return None if asked.truncate_prompt_tokens is not None else partial(check_room, facts=service.engine.facts)


async def encode(text: str, add_special_tokens: bool, service: Service) -> list[int]:
    """`text` as token ids."""
    [ids], _ = await read_prompts(text, add_special_tokens, service)
    return ids


async def encoded(
    listed: Sequence[str | list[int]], param: str, how: Encode, service: Service, fits: Fits | None = None
) -> tuple[list[list[int]], list[str | None]]:
    """Token ids of each of several inputs, and its text if it came as text.

    Args:
        listed: texts, or token ids.
        param: the field that they came in.
        how: to encode texts.
        fits: refuses long texts that have too many tokens.
    """
    texts = [one if isinstance(one, str) else None for one in listed]
    given = [text for text in texts if text is not None]
    check_length(max(map(len, given), default=0), param)
    found = iter(await service.texts.encode(msgspec.structs.replace(how, texts=given), fits))
    return [next(found) if isinstance(one, str) else one for one in listed], texts


async def render_chat(
    asked: ChatRequest | TokenizeRequest,
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


def _listed(prompt: object) -> list[str | list[int]]:
    """`prompt` as a list of prompts. Token ids themselves are the validator's to judge."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise RequestError("prompt must be a string, a list of strings or token ids.", "prompt", "invalid_type")
    if not prompt:
        raise RequestError("prompt must hold at least one token.", "prompt", "empty_prompt")
    if type(prompt[0]) is int and len(prompt) > MAX_PROMPTS:
        # A million token ids take long to look at; the validator does so, if there is room for them at all.
        return [prompt]
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return [prompt]
    if len(prompt) > MAX_PROMPTS:
        raise RequestError(f"prompt takes at most {MAX_PROMPTS} prompts.", "prompt", "too_many_prompts")
    if kinds in ({str}, {list}):
        return prompt
    raise RequestError("prompt must be all strings, all integers or all lists of integers.", "prompt", "invalid_type")
