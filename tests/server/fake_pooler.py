"""`FakePooler`: a fake engine that pools. A vector tells the length of its text; real validation and tokenizer."""

import asyncio
from array import array
from collections.abc import AsyncGenerator
from typing import Any, Unpack

import msgspec

from quire.checkpoint.late_interaction import LateInteraction
from quire.checkpoint.pooling import PoolerFacts
from quire.messages.outputs import CompletionOutput, RequestOutput
from quire.messages.pooling import PoolingParams
from quire.messages.request import Scheduling, SchedulingArgs
from quire.messages.validate_pooling import make_pooling_request
from tests.server.fake_engine import FakeEngine

VECTORS = PoolerFacts(
    tasks=["embed", "token_embed", "score"],
    whole=True,
    method="mean",
    normalize=False,
    dimension=4,
    prompts={"query": "ask: "},
)
LABELS = PoolerFacts(
    tasks=["classify", "score"],
    whole=True,
    method="cls",
    normalize=False,
    dimension=1,
    head="sequence",
    labels=["good"],
    activation="sigmoid",
)

LATE = PoolerFacts(
    tasks=["token_embed", "score"],
    whole=True,
    method="mean",
    normalize=False,
    dimension=2,
    late=LateInteraction(prefixes=("q", "doc")),
)
FRAMED = msgspec.structs.replace(LABELS, frame=("<s>", "A", "B", "</s>"))


class FakePooler(FakeEngine):
    """A fake engine that pools. `asked` are the requests as the engine would get them."""

    def __init__(self, facts: PoolerFacts = VECTORS) -> None:
        super().__init__()
        self.facts = msgspec.structs.replace(self.facts, tasks=facts.tasks, pooler=facts)
        self.asked: list[Any] = []

    async def encode(
        self,
        prompt: Any,
        pooling_params: PoolingParams,
        request_id: str | None = None,
        **scheduling: Unpack[SchedulingArgs],
    ) -> AsyncGenerator[RequestOutput, None]:
        assert request_id is not None
        request = make_pooling_request(
            request_id,
            prompt["prompt_token_ids"],
            pooling_params,
            self.facts,
            second=prompt["second"],
            scheduling=Scheduling(**scheduling),
        )
        self.asked.append(request)
        await asyncio.sleep(0)
        pooling = request.pooling
        assert pooling is not None
        values = [float(len(request.token_ids)), 1.0, 2.0, 3.0][: pooling.dimensions]
        if pooling.task.startswith("token"):
            values *= len(request.token_ids)
        yield RequestOutput(
            request_id=request_id,
            prompt=None,
            prompt_token_ids=request.token_ids,
            outputs=[CompletionOutput(index=0, text="", token_ids=[], finish_reason="stop")],
            finished=True,
            vector=array("f", values).tobytes(),
        )
