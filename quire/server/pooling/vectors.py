"""POST /v1/embeddings, /classify and /pooling: a vector of each input, the probabilities of labels, any task."""

import base64
import sys
import time
from collections.abc import Sequence
from typing import cast

from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import RequestError
from quire.messages.outputs import RequestOutput
from quire.messages.pooling import PoolingParams, PoolingTask
from quire.messages.pooling_outputs import data_of, values_of
from quire.messages.validate_pooling import check_task
from quire.server.pooling.schema import ClassificationRequest, EmbeddingRequest, PoolingRequest
from quire.server.pooling.work import Call, answer, read_call, read_inputs, usage_of

FORMATS = ("float", "base64")


async def embeddings(request: Request) -> Response:
    """A vector of each input."""
    call, asked = await read_call(request, EmbeddingRequest)
    outputs, form = await _embed(call, asked, PoolingParams(task="embed"))

    def entry(index: int, output: RequestOutput) -> dict[str, object]:
        return {"object": "embedding", "index": index, "embedding": written(output, form, "embed")}

    return await _list(call, "embd", outputs, [entry(i, output) for i, output in enumerate(outputs)])


async def pooling(request: Request) -> Response:
    """What a task of the model makes of each input; by default its first."""
    call, asked = await read_call(request, PoolingRequest)
    facts = call.service.engine.facts
    check_pools(call)
    check_task(asked.task or facts.tasks[0], facts)
    task = cast(PoolingTask, asked.task or facts.tasks[0])
    outputs, form = await _embed(call, asked, PoolingParams(task=task, use_activation=asked.use_activation))

    def entry(index: int, output: RequestOutput) -> dict[str, object]:
        return {"object": "pooling", "index": index, "data": written(output, form, task)}

    return await _list(call, "pool", outputs, [entry(i, output) for i, output in enumerate(outputs)])


async def classify(request: Request) -> Response:
    """The most probable label of each input, and the probability of each."""
    call, asked = await read_call(request, ClassificationRequest)
    params = PoolingParams(
        task="classify",
        use_activation=asked.use_activation,
        truncate_prompt_tokens=asked.truncate_prompt_tokens,
    )
    prompts = await read_inputs(asked.input, call, params, special=asked.add_special_tokens)
    outputs = await call.run(prompts, params)
    pooler = call.service.engine.facts.pooler
    labels = [] if pooler is None else pooler.labels

    def entry(index: int, output: RequestOutput) -> dict[str, object]:
        probs = values_of(output).tolist()
        label = labels[probs.index(max(probs))]
        return {"index": index, "label": label, "probs": probs, "num_classes": len(probs)}

    return await _list(call, "classify", outputs, [entry(i, output) for i, output in enumerate(outputs)])


def check_pools(call: Call) -> None:
    """Raise the 400 where the model generates text."""
    if call.service.engine.facts.pooler is None:
        raise RequestError(
            "This model generates text and gives no vectors; start the server with --runner pooling for those.",
            "model",
            "unsupported_task",
        )


def written(output: RequestOutput, form: str, task: PoolingTask) -> object:
    """The values of an output as numbers, or as base64 of little-endian float32."""
    if form == "float":
        return data_of(output, task)
    values = values_of(output)
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode()


async def _embed(call: Call, asked: EmbeddingRequest, params: PoolingParams) -> tuple[list[RequestOutput], str]:
    form = asked.encoding_format or "float"
    if form not in FORMATS:
        raise RequestError(f"encoding_format must be one of {', '.join(FORMATS)}.", "encoding_format")
    pooler = call.service.engine.facts.pooler
    prompt = "" if pooler is None else pooler.prompt_of(asked.prompt_name)
    params.dimensions, params.normalize = asked.dimensions, asked.normalize
    params.truncate_prompt_tokens = asked.truncate_prompt_tokens
    prompts = await read_inputs(asked.input, call, params, special=asked.add_special_tokens, prompt=prompt)
    return await call.run(prompts, params), form


async def _list(call: Call, prefix: str, outputs: Sequence[RequestOutput], data: "list[dict[str, object]]") -> Response:
    body = {
        "id": call.answer_id(prefix),
        "object": "list",
        "created": int(time.time()),
        "model": call.service.model_name,
        "data": data,
        "usage": usage_of(outputs),
    }
    return await answer(lambda: body, sum(len(output.vector or b"") // 4 for output in outputs))
