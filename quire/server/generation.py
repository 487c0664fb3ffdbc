"""From a checked request to its outputs: submit every prompt, merge what comes, stop everything when anybody leaves.

Endpoints call `collect` for a whole answer and `admitted` for a stream. Failures are exceptions: RequestError before
the first output, EngineError after.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Protocol, Self

from quire.base.errors import EngineError
from quire.messages.outputs import RequestOutput
from quire.messages.params import RequestOutputKind, SamplingParams
from quire.messages.pooling import PoolingParams
from quire.messages.prompts import PairPrompt
from quire.messages.request import USUAL, Scheduling
from quire.messages.validate import FrontFacts, make_request
from quire.messages.validate_pooling import make_pooling_request
from quire.server.metrics import Record
from quire.server.service import Service

Item = tuple[int, RequestOutput]
"""Number of the prompt, and news of it."""

QUEUED_ITEMS = 256


class Items(Protocol):
    """Items as they come; whoever has asked for them closes them."""

    def __aiter__(self) -> Self:
        """Itself."""

    def __anext__(self) -> Awaitable[Item]:
        """The next one."""

    async def aclose(self) -> None:
        """Stop what makes them."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to generate.

    Attributes:
        id: unique, made by the server.
        prompts: token ids of each prompt.
        params: for all of them.
        scheduling: how it stands among others.
        headers: that it came with, for traces.
        pooling: what to make of the prompts instead of text.
        seconds: where in each prompt the second of two texts begins, if there are two.
    """

    id: str
    prompts: list[list[int]]
    params: SamplingParams
    scheduling: Scheduling = USUAL
    headers: Mapping[str, str] = field(default_factory=dict)
    pooling: PoolingParams | None = None
    seconds: list[int] | None = None


@dataclass(slots=True)
class Usage:
    """Tokens of one HTTP request, as they are counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def add_prompt(self, output: RequestOutput) -> None:
        """Count the prompt of an output; once per prompt."""
        self.prompt_tokens += len(output.prompt_token_ids)
        self.cached_tokens += output.num_cached_tokens

    def as_json(self) -> dict[str, object]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


async def collect(service: Service, job: Job) -> list[RequestOutput]:
    """The finished output of each prompt, in their order, completions by index."""
    done: dict[int, RequestOutput] = {}
    async with aclosing(run(service, job)) as items:
        async for prompt, output in items:
            done[prompt] = output
    for output in done.values():
        output.outputs.sort(key=lambda completion: completion.index)
    return [done[prompt] for prompt in range(len(job.prompts))]


async def admitted(service: Service, job: Job, patience_s: float) -> Items:
    """The outputs of `job` as they come, returned once it is sure that it runs.

    A refusal is raised here, while the answer can still have any status. After `patience_s` without output the request
    has been submitted and waits its turn.
    """
    items = run(service, job)
    first = asyncio.ensure_future(anext(items))
    try:
        await asyncio.wait([first], timeout=patience_s)
        if first.done():
            first.result()
    except BaseException:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await items.aclose()
        raise
    return _Resumed(first, items)


class _Resumed:
    """`items`, of which the first is already being waited for. No generator: one costs each token a microsecond."""

    def __init__(self, first: "asyncio.Future[Item]", items: AsyncGenerator[Item, None]) -> None:
        self._first: asyncio.Future[Item] | None = first
        self._items = items

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[Item]:
        first, self._first = self._first, None
        return self._items.__anext__() if first is None else first

    async def aclose(self) -> None:
        if self._first is not None:
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        await self._items.aclose()


async def run(service: Service, job: Job) -> AsyncGenerator[Item, None]:
    """Serve `job`, counted and measured. Closing the generator ends all of it."""
    service.check_ready(job.scheduling.owner)
    tokens = sum(map(len, job.prompts))
    sequences = len(job.prompts) * job.params.n
    with service.admission.enter(sequences, tokens, job.scheduling.owner):
        trace = service.tracer.begin(job.id, job.params, job.headers)
        record = Record(service.metrics, job.params.output_kind == RequestOutputKind.DELTA, sequences, trace)
        failure: str | None = "abort"

        def seen(item: Item) -> Item:
            _raise_failed(item[1])
            record.saw(*item)
            return item

        try:
            if len(job.prompts) == 1:
                async with aclosing(_outputs(service, job, 0)) as outputs:
                    async for output in outputs:
                        yield seen((0, output))
            else:
                async with aclosing(_many(service, job)) as items:
                    async for item in items:
                        yield seen(item)
            failure = None
        except Exception:
            failure = "error"
            raise
        finally:
            record.end(failure)


def _outputs(service: Service, job: Job, prompt: int) -> AsyncGenerator[RequestOutput, None]:
    """What the engine makes of one prompt."""
    ids, name = job.prompts[prompt], f"{job.id}-{prompt}"
    if job.pooling is not None:
        pair: PairPrompt = {"prompt_token_ids": ids, "second": len(ids) if job.seconds is None else job.seconds[prompt]}
        return service.engine.encode(pair, job.pooling, name, **asdict(job.scheduling))
    return service.engine.generate({"prompt_token_ids": ids}, job.params, name, **asdict(job.scheduling))


async def _many(service: Service, job: Job) -> AsyncGenerator[Item, None]:
    """Several prompts at once; all are checked before the first one is submitted."""
    check(service, job)
    queue: asyncio.Queue[Item | Exception | None] = asyncio.Queue(QUEUED_ITEMS)
    tasks = [
        asyncio.create_task(_pump(_outputs(service, job, number), number, queue)) for number in range(len(job.prompts))
    ]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if item is None:
                left -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    outputs: AsyncGenerator[RequestOutput, None], prompt: int, queue: "asyncio.Queue[Item | Exception | None]"
) -> None:
    try:
        async with aclosing(outputs):
            async for output in outputs:
                await queue.put((prompt, output))
        await queue.put(None)
    except Exception as error:
        await queue.put(error)


def check(service: Service, job: Job) -> None:
    """Raise the RequestError with which the engine would refuse the job, without submitting anything."""
    engine = service.engine
    front = FrontFacts(engine.model.eos_token_ids, engine.tokenizer.encode_word)
    for number, prompt in enumerate(job.prompts):
        name = f"{job.id}-{number}"
        if job.pooling is not None:
            make_pooling_request(name, prompt, job.pooling, engine.facts, scheduling=job.scheduling)
        else:
            make_request(name, prompt, job.params, engine.facts, front, job.scheduling)


def _raise_failed(output: RequestOutput) -> None:
    for completion in output.outputs:
        if completion.finish_reason == "error":
            raise EngineError(output.error or "The engine failed on this request.")
        if completion.finish_reason == "abort":
            raise EngineError("The request was ended by the server.")
