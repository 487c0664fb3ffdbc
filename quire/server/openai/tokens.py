"""POST /tokenize and /detokenize, in vLLM's dialect: what a text is in tokens, and back."""

import asyncio
from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import RequestError
from quire.messages.validate import check_token_ids
from quire.server.conversation.rendering import render_chat
from quire.server.fields import read
from quire.server.openai.prompts import encode
from quire.server.openai.schema import DetokenizeRequest, TokenizeRequest
from quire.server.service import Service, service_of
from quire.server.text.texts import freed

MOST_TOKENS = 1 << 19
"""Of a text to be read, where the context is not longer."""


async def tokenize(request: Request) -> Response:
    """The token ids of a prompt or of a rendered chat."""
    service = service_of(request)
    asked = await read(request, TokenizeRequest)
    if (asked.prompt is None) == (asked.messages is None):
        raise RequestError("Send either prompt or messages.", "prompt")
    if asked.prompt is None:
        ids = await render_chat(asked, service)
    else:
        ids = await encode(asked.prompt, asked.add_special_tokens is not False, service)
    if asked.return_token_strs:
        body = await asyncio.to_thread(_told, ids, service, service.engine.tokenizer.token_text)
    else:
        body = _told(ids, service)
    await freed(ids)
    return Response(body, media_type="application/json")


def _told(ids: list[int], service: Service, text: Callable[[int], str] | None = None) -> bytes:
    """The body that tells of token ids; with the texts of a long context it takes too long for the event loop."""
    answer = {
        "count": len(ids),
        "max_model_len": service.engine.facts.max_model_len,
        "tokens": ids,
        "token_strs": None if text is None else [text(token) for token in ids],
    }
    return msgspec.json.encode(answer)


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    service = service_of(request)
    asked = await read(request, DetokenizeRequest)
    most = max(MOST_TOKENS, service.engine.facts.max_model_len)
    if len(asked.tokens) > most:
        raise RequestError(f"tokens takes at most {most} ids.", "tokens")
    check_token_ids("tokens", asked.tokens, service.engine.facts.vocab_size)
    text = await service.texts.decode(asked.tokens)
    return Response(msgspec.json.encode({"prompt": text}), media_type="application/json")
