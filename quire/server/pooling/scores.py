"""POST /score and /rerank: how well texts go together, pair by pair, or documents in order of a query.

A cross-encoder reads both texts of a pair at once; of other models the vectors are compared, by
their cosine or token by token.
"""

import asyncio
import time
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import RequestError
from quire.messages.outputs import RequestOutput
from quire.messages.pooling import PoolingParams
from quire.messages.pooling_outputs import compare, paired, scoring_task, sided, values_of
from quire.server.pooling.schema import RerankRequest, ScoreRequest, Texts
from quire.server.pooling.work import MAX_INPUTS, Call, read_call, read_pairs, read_texts, usage_of


async def score(request: Request) -> Response:
    """How well each pair of texts goes together."""
    call, asked = await read_call(request, ScoreRequest)
    first = _either(asked.text_1, asked.queries, "text_1", "queries")
    second = _either(asked.text_2, asked.documents, "text_2", "documents")
    scores, outputs = await _scores(call, paired(first, second), asked.use_activation)
    body = {
        "id": call.answer_id("score"),
        "object": "list",
        "created": int(time.time()),
        "model": call.service.model_name,
        "data": [{"index": i, "object": "score", "score": value} for i, value in enumerate(scores)],
        "usage": usage_of(outputs),
    }
    return Response(msgspec.json.encode(body), media_type="application/json")


async def rerank(request: Request) -> Response:
    """The documents that go best with a query, best first."""
    call, asked = await read_call(request, RerankRequest)
    texts = [one if isinstance(one, str) else one.text for one in asked.documents]
    if not texts:
        raise RequestError("documents must hold at least one text.", "documents")
    if asked.top_n is not None and asked.top_n < 1:
        raise RequestError("top_n must be at least 1.", "top_n")
    scores, outputs = await _scores(call, paired(asked.query, texts), asked.use_activation)
    order = sorted(range(len(texts)), key=lambda i: -scores[i])[: asked.top_n]
    shown = asked.return_documents is not False
    results = [
        {"index": i, **({"document": {"text": texts[i]}} if shown else {}), "relevance_score": scores[i]} for i in order
    ]
    body = {
        "id": call.answer_id("rerank"),
        "model": call.service.model_name,
        "usage": usage_of(outputs),
        "results": results,
    }
    return Response(msgspec.json.encode(body), media_type="application/json")


def _either(value: Texts | None, other: Texts | None, name: str, newer: str) -> Texts:
    if (value is None) == (other is None):
        raise RequestError(f"Send either {name} or {newer}.", name)
    found = other if value is None else value
    assert found is not None
    return found


async def _scores(
    call: Call, pairs: Sequence[tuple[str, str]], use_activation: bool | None
) -> tuple[list[float], list[RequestOutput]]:
    """The score of each pair, and all outputs of the engine."""
    if len(pairs) > MAX_INPUTS:
        raise RequestError(f"at most {MAX_INPUTS} pairs are scored at once.", "documents", "too_many_prompts")
    kept = call.asked.truncate_prompt_tokens
    params = PoolingParams(task="score", use_activation=use_activation, truncate_prompt_tokens=kept)
    pooler = call.service.engine.facts.pooler
    if pooler is None or pooler.head != "none":
        outputs = await call.run(await read_pairs(pairs, call.service), params)
        return [values_of(output)[0] for output in outputs], outputs
    sides, params = sided(pooler, pairs), replace(params, task=scoring_task(pooler))
    texts = list(dict.fromkeys(side for pair in sides for side in pair))
    outputs = await call.run(await read_texts(texts, call, params), params)
    found = dict(zip(texts, outputs, strict=True))
    return await asyncio.to_thread(lambda: [compare(pooler, found[a], found[b]) for a, b in sides]), outputs
