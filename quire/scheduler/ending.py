"""When a sequence ends by itself: eos, stop tokens, length. Stop strings are the front end's.

Pure rules, asked when a sample may end a sequence.
"""

from quire.messages.outputs import FinishReason
from quire.scheduler.sequence import Sequence

NOT_FINITE = "the model's output was not finite (NaN or infinity) for this request, so it was ended"


def ending(seq: Sequence) -> tuple[FinishReason, int | None] | None:
    """Whether the last token of `seq` ends it: the finish reason, and the stop token if one did it (None for eos).

    Stop tokens do not count among the first `min_tokens`.
    """
    token = seq.tokens[-1]
    if token in seq.stops and seq.generated > seq.params.min_tokens:
        eos = not seq.params.ignore_eos and token in seq.request.eos_token_ids
        return "stop", None if eos else token
    return ("length", None) if len(seq.tokens) >= seq.max_len else None
