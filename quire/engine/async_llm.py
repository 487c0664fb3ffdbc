"""`AsyncLLM`: the asynchronous front end, a client of a core in a process of its own. Needs no torch.

    engine = await AsyncLLM.start(model="folder")
    async for output in engine.generate("Once upon a time", SamplingParams(max_tokens=32)):
        ...

Leaving the generator early, or cancelling the task that iterates it, ends the request and frees its pages. Where others
start cores (`quire serve`), one after the other is joined: requests of which nothing was read go on with the next.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Unpack

from quire.base.errors import ConfigError, EngineDeadError, RequestError
from quire.base.logging import get_logger
from quire.chat.template import ChatTemplate
from quire.checkpoint.facts import ModelFacts
from quire.config.fields import EngineConfig
from quire.config.sources import engine_config
from quire.engine.client import Connection, CoreClient
from quire.engine.front import ChatMessage, FrontEnd, Prompt
from quire.engine.launch import CORE, CoreProcess
from quire.engine.open_requests import OpenRequests
from quire.engine.own_core import STOP_TIMEOUT_S, start_core
from quire.engine.pulse import Pulse
from quire.engine.streams import Stream
from quire.engine.suspects import Suspects
from quire.messages.control import CrashReport
from quire.messages.outputs import RequestOutput
from quire.messages.params import SamplingParams
from quire.messages.pooling import PoolingParams
from quire.messages.prompts import PairPrompt
from quire.messages.request import Request, Scheduling, SchedulingArgs
from quire.messages.validate_pooling import SAMPLING
from quire.messages.wire import (
    Deltas,
    EngineFacts,
    Failed,
    FromClient,
    Refused,
    ResetPrefixCache,
    Stats,
    ToClient,
)
from quire.tokenizer.tokenizer import Tokenizer

log = get_logger(__name__)


class AsyncLLM:
    """An engine's front end. `start` makes one with a core of its own.

    Args:
        front: the text side.
        facts: of the engine, as far as they are known before one is joined.
        pulse: of the cores that will be joined, if they share one.
        connect: makes the connection to the core at an address.

    Attributes:
        dead: why no engine answers; None while one does.
        retry_after_s: when another one may.
        on_death: called with that reason.
        on_lost: called when news of a core that goes on were lost: only a new front end can serve by it.
    """

    facts: EngineFacts

    def __init__(
        self,
        front: FrontEnd,
        facts: EngineFacts | None = None,
        pulse: Pulse | None = None,
        connect: Callable[[str], Connection] = CoreClient,
    ) -> None:
        self._front = front
        self._connect = connect
        self._pulse = pulse
        self._open = OpenRequests(front.tokenizer, self._send)
        self._process: CoreProcess | None = None
        self._client: Connection | None = None
        self._receiver: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stats = Stats(0, 0, 0.0, 0, 0, 0, 0, 0)
        if facts is not None:
            self.facts = facts
        self.dead: str | None = "the engine is starting"
        self.retry_after_s = 10
        self.on_death: Callable[[str], None] = lambda reason: None
        self.on_lost: Callable[[], None] = lambda: None

    @classmethod
    async def start(cls, config: EngineConfig | None = None, core: Sequence[str] = CORE, **settings: Any) -> "AsyncLLM":
        """Start a core and wait until it is ready.

        Args:
            config: what the user asks for, if it is there as a whole.
            core: what Python runs as the core; benchmarks bring one without a model.
            settings: else by name, as `LLM` takes them (`model="default"`, `max_model_len=2048`).

        Raises:
            ConfigError, CheckpointError: before any process is started, where that is possible.
            EngineError: the core could not start; the message is the core's.
        """
        if config is None:
            config = engine_config(**settings)
        elif settings:
            raise ConfigError(f"settings come by name or as a config, not both: leave out {', '.join(settings)}")
        front = FrontEnd(config)
        process, client, facts = await start_core(config, front.model, core)
        engine = cls(front)
        engine._process = process
        engine._watcher = asyncio.create_task(engine._watch(process))
        engine._joined(client, facts)
        return engine

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
        """Of the core's process, if this front end has started it."""
        assert self._process is not None, "somebody else has started the core"
        return self._process.pid

    @property
    def unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    @property
    def suspects(self) -> Suspects:
        """Requests that cores died of."""
        return self._open.suspects

    @property
    def stats(self) -> Stats:
        """Of the last step that said something."""
        return self._stats if self._pulse is None else self._pulse.stats

    @property
    def patience_s(self) -> float:
        """How long a step may take, as the core said itself; 0 has no opinion."""
        return 0.0 if self._pulse is None else self._pulse.patience_s

    def default_params(self) -> SamplingParams:
        """The checkpoint's sampling defaults."""
        return self._front.default_params()

    def encode_chat(self, messages: Sequence[ChatMessage], **template_args: Any) -> list[int]:
        """Token ids of a conversation. Raises RequestError."""
        return self._front.encode_chat(messages, **template_args)

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str | None = None,
        **scheduling: Unpack[SchedulingArgs],
    ) -> AsyncGenerator[RequestOutput, None]:
        """Complete a prompt; yields what `sampling_params.output_kind` asks for until the request has ended.

        Whoever reads slowly gets the DELTA outputs that came meanwhile as one. `Request` says what `scheduling` means.

        Raises, once it is iterated:
            RequestError: the request is refused; nothing was yielded.
            EngineDeadError: the core has ended.
        """
        standing = Scheduling(**scheduling)

        def prepare(request_id: str) -> tuple[Request, str | None]:
            return self._front.prepare(request_id, prompt, sampling_params, self.facts, standing)

        return self._serve(request_id, prepare, sampling_params)

    def encode(
        self,
        prompt: Prompt | PairPrompt,
        pooling_params: PoolingParams,
        request_id: str | None = None,
        **scheduling: Unpack[SchedulingArgs],
    ) -> AsyncGenerator[RequestOutput, None]:
        """Pool a text; yields one output, whose `vector` holds the values. Raises as `generate` does."""
        standing = Scheduling(**scheduling)

        def prepare(request_id: str) -> tuple[Request, str | None]:
            return self._front.prepare_pooling(request_id, prompt, pooling_params, self.facts, standing)

        return self._serve(request_id, prepare, SAMPLING)

    async def _serve(
        self,
        request_id: str | None,
        prepare: Callable[[str], tuple[Request, str | None]],
        params: SamplingParams,
    ) -> AsyncGenerator[RequestOutput, None]:
        request_id = request_id or self._front.new_id()
        if request_id in self._open:
            raise RequestError(f"the request id {request_id[:64]!r} is in use; ids must be unique", param="request_id")
        request, text = prepare(request_id)
        self.raise_if_dead()
        stream = Stream(request, text, params)
        self._open.begin(stream)
        finished = False
        try:
            while not finished:
                output = await stream.get()
                finished = output.finished
                if finished:
                    self._open.finished(stream)
                yield output
        finally:
            self._open.end(stream, finished)

    async def abort(self, request_id: str) -> None:
        """End a request; whoever iterates it sees an output with finish_reason "abort"."""
        self._open.abort(request_id)

    async def reset_prefix_cache(self) -> None:
        """Forget every cached prefix page that no running request uses."""
        self._send(ResetPrefixCache())

    async def join(self, address: str) -> None:
        """Serve by the core that listens at `address`, as soon as it is ready. Nothing happens if it never is."""
        client = self._connect(address)
        try:
            facts = await client.receive()
        except BaseException:
            client.close()
            raise
        if isinstance(facts, EngineFacts):
            self._joined(client, facts)
        else:
            client.close()

    def leave(self, reason: str, retry_after_s: int, culprit: str = "") -> list[CrashReport]:
        """The core is gone, another one will come. Requests of which something was read end with an error.

        Args:
            reason: why.
            retry_after_s: when the next one may be there.
            culprit: the request that it died of, if that is known.

        Returns:
            What is held against which request from now on.
        """
        if not self._part(reason, retry_after_s):
            return []  # nothing was being served; or this is told for the second time
        return self._open.lose_core(reason, retry_after_s, culprit)

    def end(self, reason: str) -> None:
        """No engine will come any more: every open request ends with an error."""
        self._part(reason, 10)
        self._open.fail(reason)

    async def close(self) -> None:
        """End the core, if it is our own, and every open request."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        self.end(self.dead or "the engine was closed")
        if self._process is not None:
            await self._process.stop(STOP_TIMEOUT_S)

    def raise_if_dead(self) -> None:
        """Raise EngineDeadError where no engine would answer."""
        if self.dead is not None:
            raise EngineDeadError(self.dead, self.retry_after_s)

    def _joined(self, client: Connection, facts: EngineFacts) -> None:
        self._client, self.facts, self.dead = client, facts, None
        self._receiver = asyncio.create_task(self._receive(client))
        self._open.ask_again()

    def _part(self, reason: str, retry_after_s: int) -> bool:
        """No core serves this front end any more; whether one did."""
        alive, self.dead, self.retry_after_s = self.dead is None, reason, retry_after_s
        if self._receiver is not None:
            self._receiver.cancel()
        served = self._client is not None
        if self._client is not None:
            self._client.close()
        self._receiver = self._client = None
        if alive:
            self.on_death(reason)
        return served

    def _send(self, message: FromClient) -> None:
        """Tell the core, if there is one; another one would not know what this is about."""
        if self._client is not None:
            self._client.send(message)

    async def _receive(self, client: Connection) -> None:
        try:
            while True:
                self._dispatch(await client.receive())
        except Exception as error:
            # News were lost: nobody may wait for what they would have said.
            log.exception("what the engine says cannot be understood")
            self.end(f"what the engine says cannot be understood: {type(error).__name__}")
            self.on_lost()

    def _dispatch(self, message: ToClient) -> None:
        if isinstance(message, Deltas):
            self._stats = message.stats or self._stats
            self._open.take(message.deltas)
        elif isinstance(message, Refused):
            self._open.refuse(message)
        elif isinstance(message, Failed):
            if self._process is not None:
                self.end(message.message)
            else:
                # Whoever starts cores will say what comes next; until then nothing new is sent to this one.
                self.dead = message.message

    async def _watch(self, process: CoreProcess) -> None:
        reason = await process.ended()
        if self.dead is None:
            self.end(reason)
