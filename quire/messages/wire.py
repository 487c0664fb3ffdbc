"""The conversation between front ends and the engine core.

Front end to core: `Hello` once, then `Submit`, `Abort`, `Finish`, `ResetPrefixCache`. Core to front end: `EngineFacts`
once, then one `Deltas` frame per step; `Refused` for a request, `Failed` where there is no engine any more.
"""

import msgspec

from quire.base.errors import EngineError, RequestError
from quire.checkpoint.pooling import PoolerFacts
from quire.messages.outputs import FinishReason
from quire.messages.plan import TokenLogprobs
from quire.messages.request import Request
from quire.messages.state import Layout


class Hello(msgspec.Struct, tag=True):
    """A front end introduces itself; the core answers with EngineFacts as soon as it is ready.

    Attributes:
        version: of quire; another one is not served.
        name: by which the launcher tells that it has died.
        secret: what the launcher has told core and front ends; whoever does not know it is not heard.
    """

    version: str
    name: str = ""
    secret: str = ""


class Submit(msgspec.Struct, tag=True):
    """Serve this request.

    Attributes:
        request: what to serve.
        trial: an earlier core died while it served this request: serve it as the only such one until it has made so
            many tokens. 0 is any other request.
        alone: two cores died while they served it: serve nothing else meanwhile that might be the cause.
    """

    request: Request
    trial: int = 0
    alone: bool = False


class Abort(msgspec.Struct, tag=True):
    """End these requests now; nothing more is said about them. Unknown ids are ignored."""

    ids: list[str]


class Finish(msgspec.Struct, tag=True):
    """The front end found a stop string: sequence `index` of request `id` ends after `tokens` generated tokens."""

    id: str
    index: int
    tokens: int


class ResetPrefixCache(msgspec.Struct, tag=True):
    """Forget every cached prefix page that no sequence uses."""


FromClient = Hello | Submit | Abort | Finish | ResetPrefixCache


class EngineFacts(msgspec.Struct, tag=True, kw_only=True):
    """What a front end must know about a ready engine.

    Attributes:
        version: of quire.
        max_model_len: longest prompt plus output, in tokens.
        vocab_size: rows of the embedding: valid token ids are below it.
        max_num_seqs: sequences that run at once.
        max_prompt_len: longest prompt that the pages can ever hold.
        max_logprobs: most logprobs a request may ask for.
        layout: pages per cache group.
        device, dtype: what it runs on.
        kv_cache_dtype: of keys and values in pages, as torch calls it; None is `dtype`.
        timeline: seconds of each start-up phase, in order.
        tasks: what requests may ask for: "generate", or tasks of pooling.
        pooler: how the model pools, if it does.
    """

    version: str
    max_model_len: int
    vocab_size: int
    max_num_seqs: int
    max_prompt_len: int
    max_logprobs: int
    layout: Layout
    device: str
    dtype: str
    kv_cache_dtype: str | None = None
    timeline: dict[str, float]
    tasks: list[str] = msgspec.field(default_factory=lambda: ["generate"])
    pooler: PoolerFacts | None = None


class Delta(msgspec.Struct, array_like=True, gc=False):
    """News of one sequence.

    Attributes:
        id, index: request, and which of its n sequences.
        token_ids: new tokens.
        logprobs: one per new token, if asked.
        finish_reason: set in the last delta of this sequence.
        stop_reason: the stop token id, when one ended it and it was not an eos token.
        cached_tokens: prompt tokens taken from the prefix cache; in the first delta of a sequence.
        prompt_logprobs: for prompt tokens 1.. (the first has none), in the leader's first delta with tokens.
        error: the sentence to tell, with finish_reason "error".
        vector: what pooling brought, as in StepResult.
    """

    id: str
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] | None = None
    error: str | None = None
    vector: bytes | None = None


class Stats(msgspec.Struct, array_like=True):
    """Counters and gauges of the core after a step, for /metrics. Counters count from the start of the core.

    Attributes:
        running, waiting: sequences now.
        kv_usage: share of pages referenced, 0 to 1, of the fullest group.
        preemptions, prefix_queries, prefix_hits: counters; the prefix ones in tokens.
        steps: steps committed.
        step_tokens: tokens computed in this step.
    """

    running: int
    waiting: int
    kv_usage: float
    preemptions: int
    prefix_queries: int
    prefix_hits: int
    steps: int
    step_tokens: int


class Deltas(msgspec.Struct, tag=True):
    """All news of one step for one front end."""

    deltas: list[Delta]
    stats: Stats | None = None


FAILED = "engine_error"
"""The code of a refusal that is the engine's fault, not the request's."""


class Refused(msgspec.Struct, tag=True):
    """The core does not take this request (its prompt can never fit the pages, say)."""

    id: str
    message: str
    param: str | None
    code: str

    @property
    def error(self) -> EngineError | RequestError:
        """What whoever sent the request is told."""
        if self.code == FAILED:
            return EngineError(self.message)
        return RequestError(self.message, self.param, self.code)


class Failed(msgspec.Struct, tag=True):
    """The core cannot start or go on; the message says why."""

    message: str


ToClient = EngineFacts | Deltas | Refused | Failed
