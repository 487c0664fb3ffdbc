"""`SamplingParams`: how a request wants its tokens chosen. Names and defaults are vLLM's.

Values are only described here; `messages/validate.py` is the one place that checks them.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import msgspec

from quire.messages.structured import StructuredOutputsParams


class RequestOutputKind(IntEnum):
    """What each output of a stream holds: all text so far, only what is new, or one output at the end."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


LogitsProcessor = Callable[..., Any]
"""`(generated_ids: list[int], logits: Tensor (vocab,)) -> Tensor (vocab,)`, or with `prompt_ids` before them.

Only in `LLM` (same process): a callable does not cross a process border.
"""


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How to choose the tokens of one request.

    Attributes:
        n: completions for the prompt.
        presence_penalty: subtracted once from logits of tokens already generated, -2 to 2.
        frequency_penalty: subtracted per occurrence among the generated tokens, -2 to 2.
        repetition_penalty: divides positive (multiplies negative) logits of tokens in prompt or output; 1 is off.
        temperature: 0 is greedy.
        top_p: keep the smallest set of tokens whose probability reaches top_p, (0, 1].
        top_k: keep the k most probable tokens; 0 or -1 keeps all.
        min_p: drop tokens less probable than min_p times the most probable one, [0, 1].
        seed: fixes the noise of this request, whatever else is in the batch. None draws a seed.
        stop: strings that end the text (not part of it unless include_stop_str_in_output).
        stop_token_ids: tokens that end the text.
        bad_words: strings whose token sequences are never completed.
        ignore_eos: go on after an end-of-sequence token.
        max_tokens: most tokens to generate; None generates up to the end of the context.
        min_tokens: no eos and no stop token before so many tokens.
        logprobs: how many of the most probable tokens to report per generated token (0: only the chosen one).
        prompt_logprobs: the same for the tokens of the prompt.
        detokenize: whether text is made.
        skip_special_tokens: leave special tokens out of the text.
        shown_token_ids: special tokens that stay in the text although the others are left out.
        spaces_between_special_tokens: kept for compatibility; applies when special tokens are shown.
        include_stop_str_in_output: keep the stop string in the text.
        output_kind: see RequestOutputKind.
        logit_bias: added to the logits of these token ids, -100 to 100.
        allowed_token_ids: only these may be sampled.
        truncate_prompt_tokens: keep only the last so many prompt tokens; -1 means max_model_len.
        structured_outputs: the form that the text must have.
        logits_processors: callables run on this request's logits, in `LLM` only.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    shown_token_ids: list[int] | None = None
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: StructuredOutputsParams | None = None
    logits_processors: list[Any] | None = None

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop
