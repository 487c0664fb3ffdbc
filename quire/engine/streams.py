"""`Stream`: an open request of a front end, and what waits for whoever reads it.

Outputs that nobody has taken are merged, so a slow reader holds one output and not a queue of them.
"""

import asyncio

from quire.base.errors import QuireError
from quire.messages.outputs import CompletionOutput, RequestOutput
from quire.messages.params import RequestOutputKind, SamplingParams
from quire.messages.request import Request


class Stream:
    """An open request, and the output that waits for whoever reads it.

    Args:
        request, prompt, params: what to ask again when a core dies before anything was taken.

    Attributes:
        taken: whether the reader has had an output.
        failed: whether the stream ends with an error.
    """

    __slots__ = ("_error", "_loop", "_output", "_waiter", "params", "prompt", "request", "taken")

    def __init__(self, request: Request, prompt: str | None, params: SamplingParams) -> None:
        self.request = request
        self.prompt = prompt
        self.params = params
        self.taken = False
        self._output: RequestOutput | None = None
        self._error: QuireError | None = None
        self._waiter: asyncio.Future[None] | None = None
        # Asking for it costs a system call, and is needed for every token.
        self._loop = asyncio.get_running_loop()

    @property
    def failed(self) -> bool:
        """See the class."""
        return self._error is not None

    def put(self, output: RequestOutput) -> None:
        """News for the reader."""
        before = self._output
        if before is None or self.params.output_kind != RequestOutputKind.DELTA:
            self._output = output
        else:
            self._output = merged(before, output)
        self._wake()

    def fail(self, error: QuireError) -> None:
        """The last news: after what waits comes `error`."""
        self._error = error
        self._wake()

    def restart(self) -> None:
        """Forget what was not taken: it will be made again."""
        assert not self.taken, "what was read cannot be unread"
        self._output = None

    async def get(self) -> RequestOutput:
        """All that is new; waits for it. Raises the error that ended the request."""
        while self._output is None:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        output, self._output = self._output, None
        self.taken = True
        return output

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def merged(first: RequestOutput, then: RequestOutput) -> RequestOutput:
    """Two DELTA outputs of a request as one."""
    outputs = {completion.index: completion for completion in first.outputs}
    for completion in then.outputs:
        before = outputs.get(completion.index)
        outputs[completion.index] = completion if before is None else _joined(before, completion)
    then.outputs = list(outputs.values())
    then.prompt_logprobs = first.prompt_logprobs or then.prompt_logprobs
    return then


def _joined(first: CompletionOutput, then: CompletionOutput) -> CompletionOutput:
    logprobs = first.logprobs
    if then.logprobs is not None:
        logprobs = (logprobs or []) + then.logprobs
    return CompletionOutput(
        index=first.index,
        text=first.text + then.text,
        token_ids=[*first.token_ids, *then.token_ids],
        cumulative_logprob=first.cumulative_logprob if then.cumulative_logprob is None else then.cumulative_logprob,
        logprobs=logprobs,
        finish_reason=then.finish_reason,
        stop_reason=then.stop_reason,
    )
