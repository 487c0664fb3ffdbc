"""What users of the Python API get back. Names and fields are vLLM's."""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]
"""Why a sequence ended: a stop string, stop token or eos; max_tokens or the context; the client; a failure."""


class Logprob(msgspec.Struct):
    """The log-probability of a token, its rank (1 is the most probable) and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class CompletionOutput(msgspec.Struct, kw_only=True):
    """One completion of a prompt.

    Attributes:
        index: which of the n completions.
        text, token_ids: all so far, or only what is new, by SamplingParams.output_kind.
        cumulative_logprob: sum over the generated tokens, if logprobs were asked for.
        logprobs: per generated token, token id to Logprob.
        finish_reason: None while it goes on.
        stop_reason: the stop string or stop token id that ended it; None for eos and length.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """Whether this completion has ended."""
        return self.finish_reason is not None


class RequestOutput(msgspec.Struct, kw_only=True):
    """Everything about one request.

    Attributes:
        prompt: the text of the prompt, if it came as text.
        prompt_logprobs: per prompt token, token id to Logprob; the first is None.
        finished: whether every completion has ended.
        num_cached_tokens: prompt tokens that came from the prefix cache.
        error: what went wrong, when a completion's finish_reason is "error".
        first_token_at: when the first token reached the front end, on the monotonic clock; None before.
        vector: of a request that pools, float32 values one after another; its one completion holds no tokens.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    outputs: list[CompletionOutput] = []
    finished: bool = False
    num_cached_tokens: int = 0
    error: str | None = None
    first_token_at: float | None = None
    vector: bytes | None = None
