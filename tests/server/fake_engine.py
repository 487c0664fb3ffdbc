"""`FakeEngine`: `AsyncLLM` without a core. Real validation, tokenizer and text; the tokens come from a script."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from typing import Any, Unpack

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from quire.base.errors import EngineDeadError
from quire.checkpoint.facts import ModelFacts
from quire.engine.outputs import OutputProcessor
from quire.messages.outputs import RequestOutput
from quire.messages.params import SamplingParams
from quire.messages.plan import TokenLogprobs
from quire.messages.request import Scheduling, SchedulingArgs
from quire.messages.state import GroupLayout, Layout, StateSpec
from quire.messages.validate import FrontFacts, make_request
from quire.messages.wire import Delta, EngineFacts, Stats
from quire.tokenizer.tokenizer import Tokenizer

EMBEDDING_ROWS = 300
EOS = 256
ANSWER = "Hello wörld 😀!"

Script = Callable[[list[int], int], list[int]]
"""Prompt and index of the sequence to the tokens that it generates, over and over."""


def byte_tokens(*more: str) -> tokenizers.Tokenizer:
    """A token per byte, `<eos>`, and `more` special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in ("<eos>", *more)])
    return inner


def byte_tokenizer(*more: str) -> Tokenizer:
    """The same as our tokenizer."""
    return Tokenizer(byte_tokens(*more), {"eos_token": "<eos>"})


class FakeTemplate:
    """`role: content` lines; `source` is what formats are recognised by, `opening` goes before the answer."""

    def __init__(self, tokenizer: Tokenizer, source: str = "<tool_call>", opening: str = "") -> None:
        self.source = source
        self.opening = opening
        self.messages: list[dict[str, Any]] = []
        self._tokenizer = tokenizer
        self.kwargs: dict[str, Any] = {}

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> list[int]:
        self.kwargs = {"add_generation_prompt": add_generation_prompt, "continued": continue_final_message, **kwargs}
        self.messages = messages
        text = "\n".join(f"{message['role']}: {text_of(message['content'])}" for message in messages)
        return self._tokenizer.encode(text + (f"\nassistant:{self.opening}" if add_generation_prompt else ""))


def text_of(content: Any) -> str:
    """A content in any form as a text."""
    return "+".join(part["text"] for part in content) if isinstance(content, list) else content or ""


class FakeEngine:
    """`AsyncLLM` without a core.

    Args:
        script: what is generated; by default ANSWER and the end of the text.
        step_s: seconds per token.
        fail_at: after so many tokens every sequence ends with an error.
        pause_at: after so many steps every request waits for `resume`.

    Attributes:
        open: requests that have been submitted and not ended.
        most_open: most that were open at a time.
        submitted: all that were ever submitted.
        prompts: of those.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        step_s: float = 0.0,
        fail_at: int | None = None,
        pause_at: int | None = None,
        max_model_len: int = 256,
    ) -> None:
        self.tokenizer = byte_tokenizer()
        self.script = script or (lambda prompt, index: [*self.tokenizer.encode(ANSWER), EOS])
        self.step_s = step_s
        self.fail_at = fail_at
        self.pause_at = pause_at
        self.facts = EngineFacts(
            version="0",
            max_model_len=max_model_len,
            vocab_size=EMBEDDING_ROWS,
            max_num_seqs=8,
            max_prompt_len=max_model_len - 1,
            max_logprobs=20,
            layout=Layout([GroupLayout(StateSpec(8), 1, 16, 33)], max_model_len),
            device="cpu",
            dtype="float32",
            timeline={"load": 0.1},
        )
        self.model = ModelFacts(
            name="org/fake-model",
            path="",
            config={},
            model_type="fake",
            dtype="float32",
            context_len=max_model_len,
            vocab_size=EMBEDDING_ROWS,
            eos_token_ids=[EOS],
            generation_config={},
            chat_template=None,
        )
        self.defaults = SamplingParams()
        self.stats = Stats(0, 0, 0.0, 0, 0, 0, 0, 0)
        self.patience_s = 0.0
        self.dead: str | None = None
        self.open: set[str] = set()
        self.most_open = 0
        self.submitted: list[str] = []
        self.prompts: list[list[int]] = []
        self.priorities: list[int] = []
        self.salts: list[str] = []
        self.owners: list[str] = []
        self.params: list[SamplingParams] = []
        self._died, self._resumed = asyncio.Event(), asyncio.Event()

    def default_params(self) -> SamplingParams:
        return self.defaults

    def raise_if_dead(self) -> None:
        if self.dead is not None:
            raise EngineDeadError(self.dead)

    def die(self, reason: str = "killed: /secret/path") -> None:
        """Every open request fails."""
        self.dead = reason
        self._died.set()
        self._resumed.set()

    def resume(self) -> None:
        """Requests that wait go on, and none waits any more."""
        self._resumed.set()

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str | None = None,
        **scheduling: Unpack[SchedulingArgs],
    ) -> AsyncGenerator[RequestOutput, None]:
        assert request_id is not None and request_id not in self.submitted
        request = make_request(
            request_id,
            prompt["prompt_token_ids"],
            sampling_params,
            self.facts,
            FrontFacts([EOS], lambda text: self.tokenizer.encode(text, add_special_tokens=False)),
            Scheduling(**scheduling),
        )
        if self.dead is not None:
            raise EngineDeadError(self.dead)
        processor = OutputProcessor(self.tokenizer)
        processor.add(request, None, sampling_params)
        self.submitted.append(request_id)
        self.prompts.append(request.token_ids)
        self.priorities.append(request.priority)
        self.salts.append(request.cache_salt)
        self.owners.append(request.owner)
        self.params.append(sampling_params)
        self.open.add(request_id)
        self.most_open = max(self.most_open, len(self.open))
        try:
            sequences = [
                Sequence(self, request_id, i, request.token_ids, request.params) for i in range(request.params.n)
            ]
            for number in itertools.count():
                if all(sequence.done for sequence in sequences):
                    break
                if number == self.pause_at:
                    await self._resumed.wait()
                await self._step()
                deltas = [sequence.step() for sequence in sequences if not sequence.done]
                outputs, finishes = processor.process(deltas)
                for finish in finishes:
                    sequences[finish.index].done = True
                for output in outputs:
                    yield output
        finally:
            self.open.discard(request_id)

    async def _step(self) -> None:
        if self.dead is None and self.step_s:
            await asyncio.wait([asyncio.ensure_future(self._died.wait())], timeout=self.step_s)
        else:
            await asyncio.sleep(0)
        if self.dead is not None:
            raise EngineDeadError(self.dead)
        self.stats.steps += 1


class Sequence:
    """One of the n sequences of a request."""

    def __init__(self, engine: FakeEngine, id: str, index: int, prompt: list[int], params: SamplingParams) -> None:
        self._engine = engine
        self._id = id
        self._index = index
        self._prompt = prompt
        self._params = params
        self._tokens = itertools.cycle(engine.script(prompt, index))
        self._count = 0
        self.done = False

    def step(self) -> Delta:
        """One more token."""
        params = self._params
        if self._count == self._engine.fail_at:
            self.done = True
            return Delta(self._id, self._index, [], finish_reason="error", error="The logits were not finite.")
        token = next(self._tokens)
        self._count += 1
        delta = Delta(self._id, self._index, [token])
        if params.logprobs is not None:
            delta.logprobs = [scores(token, params.logprobs)]
        if self._count == 1:
            delta.cached_tokens = 2
            if params.prompt_logprobs is not None and self._index == 0:
                delta.prompt_logprobs = [scores(t, params.prompt_logprobs) for t in self._prompt[1:]]
        if token == EOS and not params.ignore_eos and self._count > params.min_tokens:
            delta.finish_reason = "stop"
        elif token in (params.stop_token_ids or []):
            delta.finish_reason, delta.stop_reason = "stop", token
        elif self._count == params.max_tokens:
            delta.finish_reason = "length"
        self.done = delta.finish_reason is not None
        return delta


def scores(token: int, top: int) -> TokenLogprobs:
    """The chosen token is the second most probable one; the least probable one is impossible."""
    others = [(token + 1 + i) % 256 for i in range(top)]
    logprobs = [-0.25, *[-2.0 - i for i in range(1, top)]][:top]
    if top > 2:
        logprobs[-1] = float("-inf")
    return TokenLogprobs.of([token, *others], [-1.0, *logprobs], 2)
