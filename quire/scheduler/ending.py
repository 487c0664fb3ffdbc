"""When a sequence ends by itself: eos, stop tokens, length. Stop strings are the front end's.

Pure rules, asked by `commit` for tokens that may end a sequence.
"""

from typing import NamedTuple

from quire.messages.outputs import FinishReason
from quire.scheduler.sequence import Sequence

NOT_FINITE = "the model's output was not finite (NaN or infinity) for this request; it was ended"


class Ending(NamedTuple):
    """Why a sequence ends: the reason, and the stop token if one did it (None for eos)."""

    finish_reason: FinishReason
    stop_reason: int | None = None
    error: str | None = None


def ending(seq: Sequence) -> Ending | None:
    """Whether the last token of `seq` ends it. Stop tokens do not count among the first `min_tokens`."""
    token = seq.tokens[-1]
    if token in seq.stops and seq.generated > seq.params.min_tokens:
        eos = not seq.params.ignore_eos and token in seq.request.eos_token_ids
        return Ending("stop", None if eos else token)
    return Ending("length") if len(seq.tokens) >= seq.max_len else None
