"""`OutputProcessor`: what the core says in token ids becomes what users read. The one owner of text in a front end.

It holds the requests of one front end from `add` until they end, and nothing of them afterwards. What goes wrong with
one request ends that request alone. Called by `LLM` and `AsyncLLM`; no torch, no waiting.
"""

from collections.abc import Iterable
from time import monotonic

from quire.base.logging import get_logger
from quire.engine.completion import Completion, readable
from quire.messages.outputs import CompletionOutput, FinishReason, Logprob, RequestOutput
from quire.messages.params import RequestOutputKind, SamplingParams
from quire.messages.request import Request
from quire.messages.wire import Delta, Finish
from quire.tokenizer.tokenizer import Tokenizer

log = get_logger(__name__)


class _Served:
    """A request that has not ended."""

    def __init__(
        self, request: Request, prompt: str | None, params: SamplingParams, tokenizer: Tokenizer | None
    ) -> None:
        self.id = request.id
        self.prompt = prompt
        self.prompt_ids = request.token_ids
        self.kind = params.output_kind
        self.tokenizer = tokenizer if params.detokenize else None
        self.first_token_at: float | None = None
        self.completions = [Completion(i, request.token_ids, params, self.tokenizer) for i in range(params.n)]
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self.cached_tokens = 0
        self.error: str | None = None
        self._going_on = len(self.completions)

    @property
    def finished(self) -> bool:
        return self._going_on == 0

    def add(self, delta: Delta) -> list[Finish]:
        """Take news; what the core must be told."""
        completion = self.completions[delta.index]
        if completion.finish_reason is not None:
            return []  # tokens that were in flight when a stop string was found
        if self.first_token_at is None and delta.token_ids:
            self.first_token_at = monotonic()
        self.cached_tokens = max(self.cached_tokens, delta.cached_tokens)
        self.error = self.error or delta.error
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = [None, *(readable(entry, self.tokenizer) for entry in delta.prompt_logprobs)]
        unknown = completion.add(delta)
        self._going_on -= completion.finish_reason is not None
        return [Finish(self.id, delta.index, completion.tokens)] if unknown else []

    def fail(self, message: str) -> list[Finish]:
        """End every completion that goes on; what the core must be told."""
        self.error = self.error or message
        going_on = [completion for completion in self.completions if completion.finish_reason is None]
        for completion in going_on:
            completion.fail()
        self._going_on = 0
        return [Finish(self.id, completion.index, completion.tokens) for completion in going_on]

    def take(self) -> RequestOutput | None:
        """The output that is due now, if one is."""
        delta = self.kind == RequestOutputKind.DELTA
        if self.kind == RequestOutputKind.FINAL_ONLY:
            due = self.completions if self.finished else []
        else:
            due = [completion for completion in self.completions if completion.changed]
            if due and not delta:
                due = self.completions
        if not due:
            return None
        output = RequestOutput(
            request_id=self.id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_ids,
            prompt_logprobs=self.prompt_logprobs,
            outputs=[completion.take(delta=delta) for completion in due],
            finished=self.finished,
            num_cached_tokens=self.cached_tokens,
            error=self.error,
            first_token_at=self.first_token_at,
        )
        if delta:
            self.prompt_logprobs = None
        return output


class _Pooled:
    """A request for a vector: one output, at the end."""

    def __init__(self, request: Request, prompt: str | None) -> None:
        self.id = request.id
        self.completions: list[Completion] = []
        self._output = RequestOutput(request_id=request.id, prompt=prompt, prompt_token_ids=request.token_ids)

    @property
    def finished(self) -> bool:
        return self._output.finished

    def add(self, delta: Delta) -> list[Finish]:
        """Take the only news there is."""
        output = self._output
        output.vector, output.error, output.num_cached_tokens = delta.vector, delta.error, delta.cached_tokens
        self._end(delta.finish_reason or "stop")
        return []

    def fail(self, message: str) -> list[Finish]:
        """End with an error; the core has nothing more to do."""
        self._output.error = message
        self._end("error")
        return []

    def take(self) -> RequestOutput | None:
        """The output, once it is there."""
        return self._output if self.finished else None

    def _end(self, reason: FinishReason) -> None:
        self._output.outputs = [CompletionOutput(index=0, text="", token_ids=[], finish_reason=reason)]
        self._output.finished = True


class OutputProcessor:
    """Makes the outputs of every request of one front end.

    DELTA outputs hold the completions with news, CUMULATIVE ones all n completions, FINAL_ONLY comes once. A stop
    string ends a completion at the token that completes it: this token and its logprobs count, its text is cut. The
    text of the eos or stop token that ended a completion is left out unless include_stop_str_in_output.

    Args:
        tokenizer: None makes no text at all.

    Attributes:
        ignored: news of requests that are not (or no longer) known here.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._served: dict[str, _Served | _Pooled] = {}
        self.ignored = 0

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._served)

    def add(self, request: Request, prompt: str | None, params: SamplingParams) -> None:
        """Expect news of a request.

        Args:
            request: as it goes to the core.
            prompt: its text, to be given back, if it came as text.
            params: as validated: n, output_kind, stop and the text options are read here.
        """
        if request.pooling is not None:
            self._served[request.id] = _Pooled(request, prompt)
        else:
            self._served[request.id] = _Served(request, prompt, params, self._tokenizer)

    def process(self, deltas: Iterable[Delta]) -> tuple[list[RequestOutput], list[Finish]]:
        """Outputs that are due after these news, one per request at most, and what the core must be told."""
        touched: dict[str, _Served | _Pooled] = {}
        finishes: list[Finish] = []
        for delta in deltas:
            served = self._served.get(delta.id)
            if served is None:
                self.ignored += 1
                continue
            touched[delta.id] = served
            finishes += _add(served, delta)
        outputs = []
        for served in touched.values():
            output = served.take()
            if output is not None:
                outputs.append(output)
            if served.finished:
                del self._served[served.id]
        return outputs, finishes

    def made(self, request_id: str) -> int:
        """Tokens of the longest completion of a request; 0 if it is not known."""
        served = self._served.get(request_id)
        return max((completion.tokens for completion in served.completions), default=0) if served else 0

    def abort(self, request_id: str) -> None:
        """Forget a request; unknown ids are ignored."""
        self._served.pop(request_id, None)


def _add(served: _Served | _Pooled, delta: Delta) -> list[Finish]:
    try:
        return served.add(delta)
    except Exception:
        # Whatever it is, it belongs to this request: the others of the step must get their text.
        log.exception("request %s: making its text failed", served.id)
        return served.fail("the output could not be turned into text; the log says why")
