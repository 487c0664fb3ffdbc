"""The fields of completions, /tokenize and /detokenize, typed; and how requests for texts are read."""

from typing import TypeVar

import msgspec
from starlette.requests import Request

from quire.base.errors import RequestError
from quire.server.auth import caller_of
from quire.server.conversation.schema import Generating
from quire.server.fields import read
from quire.server.service import service_of


class CompletionRequest(Generating, kw_only=True):
    """POST /v1/completions. `prompt` is checked in `prompts.py`."""

    prompt: object
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize: `prompt`, or `messages` as in a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: object = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


G = TypeVar("G", bound=Generating)


async def read_generating(request: Request, kind: type[G]) -> G:
    """`read` for texts to be generated; refuses what an engine that is busy or gone would not take."""
    asked = await read(request, kind)
    if asked.stream_options is not None and not asked.stream:
        raise RequestError("stream_options need stream: true.", "stream_options")
    if asked.stream and asked.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs are not given in streams; leave out stream.", "prompt_logprobs")
    # best_of is served where it does nothing.
    if asked.best_of is not None and asked.best_of != (asked.n or 1):
        raise RequestError(
            "best_of is not supported, except equal to n; leave it out.", "best_of", "unsupported_parameter"
        )
    service_of(request).check_ready(caller_of(request.scope).name)
    return asked
