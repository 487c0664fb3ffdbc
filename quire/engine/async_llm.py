"""`AsyncLLM`: the asynchronous front end, a client of a core in a process of its own. Needs no torch.

    engine = await AsyncLLM.start(engine_config(model="folder"))
    async for output in engine.generate("Once upon a time", SamplingParams(max_tokens=32)):
        ...

Leaving the generator early, or cancelling the task that iterates it, ends the request and frees its pages.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.base.errors import EngineDeadError, EngineError, QuireError, RequestError
from quire.base.logging import get_logger
from quire.chat.template import ChatTemplate
from quire.checkpoint.facts import ModelFacts
from quire.config.fields import EngineConfig
from quire.engine.client import CoreClient
from quire.engine.front import ChatMessage, FrontEnd, Prompt, Scheduling
from quire.engine.launch import CORE, CoreProcess
from quire.engine.outputs import OutputProcessor
from quire.messages.outputs import RequestOutput
from quire.messages.params import SamplingParams
from quire.messages.wire import (
    Abort,
    Delta,
    Deltas,
    EngineFacts,
    Failed,
    Refused,
    ResetPrefixCache,
    Stats,
    Submit,
    ToClient,
)
from quire.tokenizer.tokenizer import Tokenizer

log = get_logger(__name__)

STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Stream:
    """An open request: how many completions it has, and what waits for whoever iterates it."""

    n: int
    queue: asyncio.Queue[RequestOutput | QuireError] = field(default_factory=asyncio.Queue)


class AsyncLLM:
    """A running engine. Made by `start`.

    Attributes:
        stats: of the last step that said something.
        dead: why no engine answers any more; None while it lives.
        on_death: called once with that reason.
    """

    def __init__(self, front: FrontEnd, process: CoreProcess, client: CoreClient, facts: EngineFacts) -> None:
        self._front = front
        self._process = process
        self._client = client
        self._processor = OutputProcessor(front.tokenizer)
        self._streams: dict[str, Stream] = {}
        self.facts = facts
        self.stats = Stats(0, 0, 0.0, 0, 0, 0, 0, 0)
        self.dead: str | None = None
        self.on_death: Callable[[str], None] = lambda reason: None
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch())]

    @classmethod
    async def start(cls, config: EngineConfig, core: Sequence[str] = CORE) -> "AsyncLLM":
        """Start a core and wait until it is ready.

        Args:
            config: what the user asks for.
            core: what Python runs as the core; benchmarks bring one without a model.

        Raises:
            ConfigError, CheckpointError: before any process is started, where that is possible.
            EngineError: the core could not start; the message is the core's.
        """
        front = FrontEnd(config)
        process = await CoreProcess.start(config, front.model, core)
        client = CoreClient(process.address)
        try:
            facts = await _first_facts(client, process)
        except BaseException:
            client.close()
            await process.stop(STOP_TIMEOUT_S)
            raise
        return cls(front, process, client, facts)

    @property
    def model(self) -> ModelFacts:
        """The checkpoint."""
        return self._front.model

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._front.tokenizer

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The model's chat template, if it has one."""
        return self._front.chat_template

    @property
    def pid(self) -> int:
        """Of the core's process."""
        return self._process.pid

    @property
    def unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    def default_params(self) -> SamplingParams:
        """The checkpoint's sampling defaults."""
        return self._front.default_params()

    def encode_chat(self, messages: Sequence[ChatMessage], **template_args: Any) -> list[int]:
        """Token ids of a conversation. Raises RequestError."""
        return self._front.encode_chat(messages, **template_args)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        owner: str = "",
    ) -> AsyncGenerator[RequestOutput, None]:
        """Complete a prompt; yields what `sampling_params.output_kind` asks for until the request has ended.

        Raises:
            RequestError: the request is refused; nothing was yielded.
            EngineDeadError: the core has ended.
        """
        request_id = request_id or self._front.new_id()
        if request_id in self._streams:
            raise RequestError(f"the request id {request_id[:64]!r} is in use; ids must be unique", param="request_id")
        scheduling = Scheduling(priority, cache_salt, owner)
        request, text = self._front.prepare(request_id, prompt, sampling_params, self.facts, scheduling)
        self._raise_if_dead()
        stream = Stream(request.params.n)
        self._streams[request_id] = stream
        self._processor.add(request, text, sampling_params)
        self._client.send(Submit(request))
        finished = False
        try:
            while not finished:
                item = await stream.queue.get()
                if isinstance(item, QuireError):
                    finished = True
                    raise item
                finished = item.finished
                yield item
        finally:
            self._streams.pop(request_id, None)
            if not finished:
                self._processor.abort(request_id)
                self._client.send(Abort([request_id]))

    async def abort(self, request_id: str) -> None:
        """End a request; whoever iterates it sees an output with finish_reason "abort"."""
        stream = self._streams.get(request_id)
        if stream is None:
            return
        self._client.send(Abort([request_id]))
        # The core says nothing of aborted requests; the ends that it would have sent are made here.
        ends = [Delta(request_id, index, [], finish_reason="abort") for index in range(stream.n)]
        outputs, _ = self._processor.process(ends)
        for output in outputs:
            stream.queue.put_nowait(output)

    async def reset_prefix_cache(self) -> None:
        """Forget every cached prefix page that no running request uses."""
        self._client.send(ResetPrefixCache())

    async def close(self) -> None:
        """End the core and every open request."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._die("the engine was closed")
        self._client.close()
        await self._process.stop(STOP_TIMEOUT_S)

    def _raise_if_dead(self) -> None:
        if self.dead is not None:
            raise EngineDeadError(self.dead)

    async def _receive(self) -> None:
        while True:
            self._dispatch(await self._client.receive())

    def _dispatch(self, message: ToClient) -> None:
        if isinstance(message, Deltas):
            self.stats = message.stats or self.stats
            outputs, finishes = self._processor.process(message.deltas)
            for finish in finishes:
                self._client.send(finish)
            for output in outputs:
                self._put(output.request_id, output)
        elif isinstance(message, Refused):
            self._processor.abort(message.id)
            self._put(message.id, RequestError(message.message, message.param, message.code))
        elif isinstance(message, Failed):
            self._die(message.message)

    def _put(self, request_id: str, item: RequestOutput | QuireError) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.queue.put_nowait(item)

    async def _watch(self) -> None:
        self._die(await self._process.ended())

    def _die(self, reason: str) -> None:
        """Nothing more will come: every open request ends with an error."""
        if self.dead is not None:
            return
        self.dead = reason
        for request_id, stream in self._streams.items():
            self._processor.abort(request_id)
            stream.queue.put_nowait(EngineDeadError(reason))
        self.on_death(reason)


async def _first_facts(client: CoreClient, process: CoreProcess) -> EngineFacts:
    """What a starting core says first. Raises EngineError if it fails or ends."""
    ended = asyncio.create_task(process.ended())
    said = asyncio.create_task(client.receive())
    try:
        # A core that fails says why before it ends: its words are worth a moment's wait.
        await asyncio.wait([ended, said], return_when=asyncio.FIRST_COMPLETED)
        if not said.done():
            await asyncio.wait([said], timeout=0.5)
        if not said.done():
            raise EngineError(f"{ended.result()} before it was ready; its log is above")
        message = said.result()
        if isinstance(message, EngineFacts):
            return message
        raise EngineError(message.message if isinstance(message, Failed) else "the engine spoke out of turn")
    finally:
        ended.cancel()
        said.cancel()
