"""What endpoints that pool share: inputs as token ids, the engine's work, usage, answers."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import RequestError
from quire.messages.outputs import RequestOutput
from quire.messages.pooling import PoolingParams
from quire.messages.pooling_outputs import Side
from quire.messages.text import Encode
from quire.messages.validate_pooling import SAMPLING, kept_tokens, read_sides
from quire.server.auth import caller_of
from quire.server.fields import read
from quire.server.generation import collect
from quire.server.inputs import encoded
from quire.server.jobs import answer_id, job_of
from quire.server.pooling.schema import Pooled
from quire.server.service import Service, service_of
from quire.server.text.lengths import check_length
from quire.server.watch import Watch

MAX_INPUTS = 2048
LONG_ANSWER_VALUES = 100_000

T = TypeVar("T", bound=Pooled)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Inputs as token ids; of pairs of texts also where the second ones begin."""

    ids: list[list[int]]
    seconds: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request that was read."""

    request: Request
    service: Service
    asked: Pooled

    async def run(self, prompts: Prompts, params: PoolingParams) -> list[RequestOutput]:
        """Pool all prompts; outputs in their order. Raises RequestError, EngineError."""
        job = job_of(self.request, self.asked, prompts.ids, SAMPLING)
        job = replace(job, pooling=params, seconds=prompts.seconds)
        async with Watch(self.request.receive, self.service.open_watches):
            return await collect(self.service, job)

    def answer_id(self, prefix: str) -> str:
        """The id in the answer."""
        return answer_id(prefix, self.asked.request_id)


async def read_call(request: Request, kind: type[T]) -> tuple[Call, T]:
    """Read the body of `request`. Raises ApiError, RequestError."""
    service = service_of(request)
    asked = await read(request, kind)
    service.check_ready(caller_of(request.scope).name)
    return Call(request, service, asked), asked


async def read_inputs(
    given: object, call: Call, params: PoolingParams, *, special: bool | None = None, prompt: str = ""
) -> Prompts:
    """Token ids of `input`: a text, token ids, or a list of those; `prompt` goes before each text."""
    service, listed = call.service, _listed(given)
    special = special is not False
    how = Encode([], special=special, within=kept_tokens(params, service.engine.facts) if special else None)
    ids, _ = await encoded([prompt + one if isinstance(one, str) else one for one in listed], "input", how, service)
    return Prompts(ids)


async def read_texts(sides: Sequence[Side], call: Call, params: PoolingParams) -> Prompts:
    """Token ids of texts that are compared with each other, as the model reads them."""
    found = await read_inputs([side.text for side in sides], call, params)
    return Prompts(read_sides(sides, found.ids, params, call.service.engine.facts))


async def read_pairs(pairs: Sequence[tuple[str, str]], service: Service) -> Prompts:
    """Token ids of pairs of texts, each put together."""
    check_length(sum(len(a) + len(b) for a, b in pairs), "documents")
    pooler = service.engine.facts.pooler
    return Prompts(*await service.texts.encode_pairs(pairs, None if pooler is None else pooler.frame))


def usage_of(outputs: Sequence[RequestOutput]) -> dict[str, object]:
    """OpenAI's usage object."""
    tokens = sum(len(output.prompt_token_ids) for output in outputs)
    cached = sum(output.num_cached_tokens for output in outputs)
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


async def answer(make: Callable[[], object], values: int) -> Response:
    """What `make` returns, as JSON; with many values made in a thread."""

    def work() -> bytes:
        return msgspec.json.encode(make())

    body = await asyncio.to_thread(work) if values > LONG_ANSWER_VALUES else work()
    return Response(body, media_type="application/json")


def _listed(given: object) -> "list[str | list[int]]":
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        raise RequestError("input must be a string, a list of strings or token ids.", "input", "invalid_type")
    if not given:
        raise RequestError("input must hold at least one text.", "input", "empty_prompt")
    kinds = set(map(type, given))
    if kinds == {int}:
        return [given]
    if len(given) > MAX_INPUTS:
        raise RequestError(f"input takes at most {MAX_INPUTS} texts.", "input", "too_many_prompts")
    if kinds in ({str}, {list}):
        return given
    raise RequestError("input must be all strings, all integers or all lists of integers.", "input", "invalid_type")
