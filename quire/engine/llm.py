"""`LLM`: offline inference in this process, on vLLM's names.

    with LLM("folder/of/a/model") as llm:
        for output in llm.generate(["Once upon a time"], SamplingParams(temperature=0.8, max_tokens=64)):
            print(output.outputs[0].text)

The core is turned in the caller's thread; an `LLM` is for one thread at a time. No `__main__` guard is needed.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import msgspec

from quire.base.collector import what_lives_spared
from quire.base.errors import ConfigError, EngineDeadError, EngineError, RequestError
from quire.base.registry import load
from quire.config.sources import engine_config
from quire.engine.front import ChatMessage, FrontEnd, Prompt, as_list
from quire.engine.outputs import OutputProcessor
from quire.engine.pooling import PoolingCalls, checked
from quire.engine.progress import bar, weights_progress
from quire.messages.outputs import RequestOutput
from quire.messages.params import RequestOutputKind, SamplingParams
from quire.messages.pooling import PoolingParams
from quire.messages.prompts import PairPrompt
from quire.messages.request import Request, Scheduling
from quire.messages.validate_pooling import SAMPLING
from quire.messages.wire import EngineFacts, Refused
from quire.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from quire.engine.core import EngineCore


class LLM(PoolingCalls):
    """A model in this process.

    Args:
        model: folder or hub name; the model that ships with quire by default.
        settings: any field of `quire.config.fields` by its name (`max_model_len=2048`, `tensor_parallel_size=2`).

    Raises:
        ConfigError, PlatformError, CheckpointError: what is wrong, and the remedy.
    """

    def __init__(self, model: str = "default", **settings: Any) -> None:
        config = engine_config(model=model, **settings)
        self._front = FrontEnd(config, in_process=True)
        with weights_progress(self._front.model.name) as progress:
            begin = load("quire.engine.begin:begin")
            self._core: EngineCore | None = begin(config, self._front.model, progress, streams=False)
        self._ended = "was closed"
        self._processor = OutputProcessor(self._front.tokenizer)
        self._ready: dict[str, deque[RequestOutput]] = {}
        self._refused: dict[str, EngineError | RequestError] = {}  # until its own call hears of it
        self._single_rank = config.parallel.tensor_parallel_size == 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def facts(self) -> EngineFacts:
        """Limits, layout and device of the engine."""
        return self._running().facts

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._front.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What is used where no SamplingParams are given: the checkpoint's generation_config.json."""
        return self._front.default_params()

    @what_lives_spared()
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete each prompt; outputs come in the order of the prompts.

        Args:
            prompts: a text, a list of token ids, a dict with `prompt` or `prompt_token_ids`, or a list of those.
            sampling_params: for all prompts, or one for each.
            use_tqdm: show a progress bar.
            priority: one for each prompt; lower is served first under the priority policy.

        Raises:
            RequestError: a prompt or its parameters are wrong; nothing has run then.
            EngineError: the engine is at fault; EngineDeadError where it has ended by that.
        """
        listed = as_list(prompts)
        params = self._params_for(listed, sampling_params)
        return self._finish(self._submit(listed, params, priority or [0] * len(listed)), use_tqdm)

    @what_lives_spared()
    def _pool(
        self, prompts: Sequence[Prompt | PairPrompt], params: PoolingParams, use_tqdm: bool
    ) -> list[RequestOutput]:
        facts = self._running().facts
        prepared = [self._front.prepare_pooling(self._front.new_id(), prompt, params, facts) for prompt in prompts]
        return [checked(output) for output in self._finish(self._enter(prepared, SAMPLING), use_tqdm)]

    def _finish(self, ids: Sequence[str], use_tqdm: bool) -> list[RequestOutput]:
        """The last output of each request, in their order."""
        done: dict[str, RequestOutput] = {}
        with bar(len(ids), "requests", use_tqdm) as progress:
            for output in self._outputs(ids):
                if output.finished:
                    done[output.request_id] = output
                    progress.update(1)
        return [done[request_id] for request_id in ids]

    def chat(
        self,
        messages: Sequence[ChatMessage] | Sequence[Sequence[ChatMessage]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **template_args: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, rendered by the model's chat template.

        Args:
            messages: a conversation (a list of `{"role": ..., "content": ...}`) or a list of conversations.
            template_args: `add_generation_prompt`, `continue_final_message`, `tools`, whatever the template knows (also
                as `chat_template_kwargs`), and `chat_template`, the text of another one.
        """
        prompts: list[Prompt] = [
            self._front.encode_chat(conversation, **template_args) for conversation in _conversations(messages)
        ]
        return self.generate(prompts, sampling_params, use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Complete one prompt; each output holds what is new. Closing the iterator ends the request."""
        params = msgspec.structs.replace(
            sampling_params or self._front.default_params(), output_kind=RequestOutputKind.DELTA
        )
        ids = self._submit([prompt], [params], [0])
        yield from self._outputs(ids)

    def stream_chat(
        self, messages: Sequence[ChatMessage], sampling_params: SamplingParams | None = None, **template_args: Any
    ) -> Iterator[RequestOutput]:
        """Answer one conversation; each output holds what is new."""
        return self.stream(self._front.encode_chat(messages, **template_args), sampling_params)

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix page that no running request uses."""
        self._running().scheduler.reset_prefix_cache()

    def close(self) -> None:
        """End the engine and give all memory back. Safe to call twice."""
        core, self._core = self._core, None
        if core is not None:
            core.close()

    def _running(self) -> "EngineCore":
        if self._core is None:
            raise EngineError(f"this LLM {self._ended}; make a new one")
        return self._core

    def _params_for(
        self, prompts: Sequence[Prompt], given: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if given is None or isinstance(given, SamplingParams):
            each = [given or self._front.default_params()] * len(prompts)
        else:
            each = list(given)
        if len(each) != len(prompts):
            raise ConfigError(f"{len(prompts)} prompts but {len(each)} sampling_params; give one, or one for each")
        return [msgspec.structs.replace(p, output_kind=RequestOutputKind.FINAL_ONLY) for p in each]

    def _submit(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], priority: Sequence[int]
    ) -> list[str]:
        """Validate every prompt, then hand all of them to the core: either all run or none."""
        core = self._running()
        if not self._single_rank and any(p.logits_processors for p in params):
            raise ConfigError("logits_processors need tensor_parallel_size=1: a callable does not cross processes")
        prepared = [
            self._front.prepare(self._front.new_id(), prompt, p, core.facts, Scheduling(priority=rank))
            for prompt, p, rank in zip(prompts, params, priority, strict=True)
        ]
        return self._enter(prepared, *params)

    def _enter(self, prepared: Sequence[tuple[Request, str | None]], *params: SamplingParams) -> list[str]:
        """Hand requests to the core, each with its parameters or all with the same."""
        core = self._running()
        ids = [request.id for request, _ in prepared]
        each = params if len(params) == len(prepared) else params * len(prepared)
        try:
            for (request, text), p in zip(prepared, each, strict=True):
                core.add(request)
                self._processor.add(request, text, p)
                self._ready[request.id] = deque()
            self._note(core.grammars.wait_for_all())
            self._raise_refused(ids)
        except BaseException:
            self._drop(ids)
            raise
        return ids

    def _outputs(self, ids: Sequence[str]) -> Iterator[RequestOutput]:
        """Turn the core until these requests have ended, yielding their outputs. Ends them if the caller leaves."""
        left = set(ids)
        try:
            while left:
                for request_id in list(left):
                    ready = self._ready[request_id]
                    while ready:
                        output = ready.popleft()
                        if output.finished:
                            left.discard(request_id)
                        yield output
                if left:
                    self._raise_refused(left)
                    self._turn()
        finally:
            self._drop(ids)

    def _turn(self) -> None:
        core = self._running()
        if core.grammars.busy and self._note(core.grammars.collect()):
            return
        try:
            deltas = core.turn()
        except BaseException as error:
            # What the ranks hold is not known any more, also after an interrupt.
            self._core, self._ended = None, f"has failed ({type(error).__name__}: {error})"
            with suppress(Exception):  # a broken device may refuse to be left, too
                core.abandon()
            if not isinstance(error, Exception):
                raise
            raise EngineDeadError(f"this LLM {self._ended}; make a new one") from error
        if deltas is None:
            if not core.grammars.busy:
                raise EngineError("requests wait but nothing can run; please report this with the event log")
            core.grammars.wait()
            return
        outputs, finishes = self._processor.process(deltas)
        for finish in finishes:
            core.scheduler.finish(finish.id, finish.index, finish.tokens)
        for output in outputs:
            if output.request_id in self._ready:
                self._ready[output.request_id].append(output)

    def _note(self, refused: Sequence[Refused]) -> bool:
        """Keep refusals for the calls whose they are. Returns whether there are any."""
        self._refused.update((refusal.id, refusal.error) for refusal in refused)
        return bool(refused)

    def _raise_refused(self, ids: Iterable[str]) -> None:
        for request_id in ids:
            if request_id in self._refused:
                raise self._refused[request_id]

    def _drop(self, ids: Sequence[str]) -> None:
        """Forget requests; those still running are ended."""
        for request_id in ids:
            self._ready.pop(request_id, None)
            self._refused.pop(request_id, None)
            self._processor.abort(request_id)
        if self._core is not None:
            self._core.abort(list(ids))


def _conversations(
    messages: Sequence[ChatMessage] | Sequence[Sequence[ChatMessage]],
) -> Sequence[Sequence[ChatMessage]]:
    """Several conversations as a list of them; a list of messages is one."""
    if messages and isinstance(messages[0], Mapping):
        return [cast(Sequence[ChatMessage], messages)]
    return cast(Sequence[Sequence[ChatMessage]], messages)
