"""POST /v1/completions: text or token ids in, their continuation out, whole or as a stream of chunks."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import RequestError
from quire.messages.outputs import CompletionOutput, RequestOutput
from quire.messages.params import SamplingParams
from quire.server.conversation.rendering import fits_of
from quire.server.conversation.sampling import model_max_tokens, sampling_params
from quire.server.conversation.structured import own_field
from quire.server.generation import Items, Usage, admitted, collect
from quire.server.jobs import answer_id, job_of
from quire.server.openai.chunks import Chunks
from quire.server.openai.logprobs import CompletionLogprobs, joined, prompt_logprobs
from quire.server.openai.prompts import read_middles, read_prompts
from quire.server.openai.schema import CompletionRequest, read_generating
from quire.server.service import Service, service_of
from quire.server.sse import KEEP_ALIVE_S, EventStream, Frame
from quire.server.watch import Watch

DEFAULT_MAX_TOKENS = 16
MAX_CHOICES = 1024
MAX_BAD_WORDS = 1 << 13


async def completions(request: Request) -> Response:
    """Serve one request; see the module."""
    service = service_of(request)
    asked = await read_generating(request, CompletionRequest)
    params = _params(asked, service)
    async with Watch(request.receive, service.open_watches):
        bos = asked.add_special_tokens is not False
        if asked.suffix:
            prompts, ends = await read_middles(asked.prompt, asked.suffix, bos, service)
            params = msgspec.structs.replace(params, stop_token_ids=[*(params.stop_token_ids or []), *ends])
            texts: list[str | None] = [None] * len(prompts)
        else:
            prompts, texts = await read_prompts(asked.prompt, bos, service, fits_of(asked, service))
        _check_choices(len(prompts) * params.n)
        _check_bad_words(len(prompts) * len(params.bad_words or ()))
        job = job_of(request, asked, prompts, params)
        answer = Completion(answer_id("cmpl", asked.request_id), service, asked, texts)
        try:
            if asked.stream:
                items = await admitted(service, job, KEEP_ALIVE_S)
                return EventStream(answer.chunks(items), service.open_watches)
            outputs = await collect(service, job)
        except RequestError as error:
            raise own_field(error, asked) from None
    return Response(msgspec.json.encode(answer.whole(outputs)), media_type="application/json")


def _params(asked: CompletionRequest, service: Service) -> SamplingParams:
    longest = asked.max_tokens
    if longest is None:
        longest = model_max_tokens(service) or DEFAULT_MAX_TOKENS
    if longest == 0 and not asked.echo:
        raise RequestError("max_tokens must be at least 1, except 0 with echo: true.", "max_tokens")
    if asked.suffix and asked.echo:
        raise RequestError("echo has no meaning beside suffix; leave one of them out.", "echo")
    return sampling_params(
        asked,
        service,
        # To score a prompt the engine computes it once, which brings a token; that token is not told.
        max_tokens=longest or 1,
        logprobs=asked.logprobs,
        prompt_logprobs=asked.logprobs if asked.echo else None,
    )


def _check_choices(choices: int) -> None:
    if choices > MAX_CHOICES:
        raise RequestError(f"prompts times n may be at most {MAX_CHOICES}, but is {choices}.", "n", "too_many_choices")


def _check_bad_words(times: int) -> None:
    """They are encoded for each prompt, and others wait meanwhile."""
    if times > MAX_BAD_WORDS:
        raise RequestError(f"prompts times bad_words may be at most {MAX_BAD_WORDS}, but is {times}.", "bad_words")


@dataclass(slots=True)
class Completion:
    """One answer being written; `texts` are the prompts that came as text."""

    id: str
    service: Service
    asked: CompletionRequest
    texts: list[str | None]

    def whole(self, outputs: list[RequestOutput]) -> dict[str, object]:
        """The answer in one piece."""
        usage = Usage()
        choices = []
        for number, output in enumerate(outputs):
            usage.add_prompt(output)
            for completion in output.outputs:
                choice = Choice(self, number, completion.index)
                choices.append({**choice.news(output, completion), "prompt_logprobs": prompt_logprobs(output)})
                usage.completion_tokens += choice.tokens
        return {**self._head(), "choices": choices, "usage": usage.as_json()}

    async def chunks(self, items: Items) -> AsyncGenerator[bytes, None]:
        """The answer as events."""
        writer = ChunkWriter(self, self._head())
        async with aclosing(items):
            async for number, output in items:
                if rendered := writer.news(number, output):
                    yield rendered
        if writer.options.include_usage:
            yield writer.last()

    def _head(self) -> dict[str, object]:
        service = self.service
        return {
            "id": self.id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model_name,
            "system_fingerprint": service.fingerprint,
        }


class Choice:
    """One choice, told in one piece or in several. The first piece begins with the prompt if it is to be echoed."""

    def __init__(self, answer: Completion, number: int, k: int) -> None:
        self._answer = answer
        self._asked = answer.asked
        self._number = number
        self._index = number * (answer.asked.n or 1) + k
        self._logprobs = CompletionLogprobs(answer.service.engine.tokenizer)
        self._opened = False
        self.tokens = 0

    def news(self, output: RequestOutput, completion: CompletionOutput) -> dict[str, object]:
        """The piece for what `completion` brings."""
        silent = self._asked.max_tokens == 0
        ids = [] if silent else completion.token_ids
        logprobs = None if self._asked.logprobs is None else self._logprobs.empty()
        text = "" if silent else completion.text
        opening = not self._opened
        self._opened = True
        if opening and self._asked.echo:
            text = self._prompt_text(output) + text
            logprobs = logprobs and self._logprobs.prompt(output)
        if logprobs is not None and ids:
            logprobs = joined(logprobs, self._logprobs.piece(ids, completion.logprobs or []))
        self.tokens += len(ids)
        choice: dict[str, object] = {
            "index": self._index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": completion.finish_reason and ("length" if silent else completion.finish_reason),
            "stop_reason": None if silent else completion.stop_reason,
        }
        if self._asked.return_token_ids:
            choice |= {"token_ids": ids, "prompt_token_ids": output.prompt_token_ids if opening else None}
        return choice

    def _prompt_text(self, output: RequestOutput) -> str:
        text = self._answer.texts[self._number]
        if text is None or self._asked.truncate_prompt_tokens is not None:
            return self._answer.service.engine.tokenizer.decode(output.prompt_token_ids, skip_special_tokens=False)
        return text


class ChunkWriter(Chunks):
    """Renders the chunks of one stream; text without anything else is put into frames rendered once."""

    def __init__(self, answer: Completion, head: dict[str, object]) -> None:
        asked = answer.asked
        super().__init__(head, asked.stream_options)
        self._answer = answer
        self._choices: dict[tuple[int, int], Choice] = {}
        self._frames: dict[tuple[int, int], Frame] = {}
        self._scores: dict[int, RequestOutput] = {}
        self._plain = asked.logprobs is None and not (
            asked.echo or asked.return_token_ids or self.options.continuous_usage_stats
        )

    def news(self, number: int, output: RequestOutput) -> bytes:
        """Chunks for what is new; empty if nothing is to be told yet."""
        if number not in self._scores:
            self._scores[number] = output
            self._usage.add_prompt(output)
        # Only the first output of a prompt brings its logprobs, but every choice may have to echo them.
        output.prompt_logprobs = self._scores[number].prompt_logprobs
        return b"".join([self._completion(number, output, completion) for completion in output.outputs])

    def _completion(self, number: int, output: RequestOutput, completion: CompletionOutput) -> bytes:
        key = (number, completion.index)
        if self._plain and completion.finish_reason is None:
            self._usage.completion_tokens += len(completion.token_ids)
            return self._frame(key).around(completion.text) if completion.text else b""
        choice = self._choices.get(key)
        if choice is None:
            choice = self._choices[key] = Choice(self._answer, *key)
        before = choice.tokens
        piece = choice.news(output, completion)
        self._usage.completion_tokens += choice.tokens - before
        tells = piece["text"] or piece["finish_reason"] or (not self._plain and completion.token_ids)
        return self._chunk_of(piece) if tells else b""

    def _frame(self, key: tuple[int, int]) -> Frame:
        frame = self._frames.get(key)
        if frame is None:
            index = key[0] * (self._answer.asked.n or 1) + key[1]
            choice = {"index": index, "text": Frame.MARK, "logprobs": None, "finish_reason": None, "stop_reason": None}
            frame = self._frames[key] = Frame(self._chunk_of(choice))
        return frame
