"""What changes logits before a token is chosen, in this order:

1. callables of the user (they see the model's logits and cannot undo what follows),
2. logit_bias and allowed_token_ids,
3. repetition, then frequency, then presence penalty,
4. bans (bad_words, and the ends of text while min_tokens is not reached),
5. the grammar (`masks.py`),
then, in the sampler, temperature, min_p, top_k, top_p. It is vLLM's order; in Hugging Face's min_p comes after top_p.
All of it is float arithmetic: on CPUs selecting by a mask costs ten times as much as multiplying by 0 and 1.
"""

from dataclasses import dataclass
from types import FunctionType

import torch
from torch import Tensor

from quire.sampling.rows import IN_PROMPT, Feature, HostRow, RowState, Settings

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class History:
    """What rows know: tokens (max_rows, max_len) int32 and how many of them are valid, known (max_rows,) int32."""

    tokens: Tensor
    known: Tensor


def apply(x: Tensor, features: Feature, settings: Settings, rows: Tensor, state: RowState, history: History) -> None:
    """Steps 2 to 4, in place, for a batch in which some row has `features`. Neutral for rows without them.

    Args:
        x: (n, vocab) float32 logits.
        features: what any row of the batch needs.
        settings: the numbers of the rows.
        rows: (n,) int64.
        state: tables of the rows.
        history: known tokens.
    """
    if Feature.OFFSET in features:
        x += state.offsets.gather(rows)
    if features & (Feature.REPETITION | Feature.FREQUENCY):
        counts = state.counts.gather(rows)
        if Feature.REPETITION in features:
            _repetition(x, counts, settings.repetition)
        if Feature.FREQUENCY in features:
            _frequency(x, counts, settings.frequency, settings.presence)
    # Dividing by a tiny penalty may leave float32; two infinities would make NaN.
    x.clamp_(max=_LARGEST)
    if Feature.BANS in features:
        state.bans.apply(x, rows, history.tokens, history.known)


def _repetition(x: Tensor, counts: Tensor, penalty: Tensor) -> None:
    """Divide positive and multiply negative logits of tokens in prompt or output (Keskar et al., CTRL, 2019)."""
    seen = counts.clamp(max=1).float()
    factor = seen * penalty - (seen - 1)  # exactly the penalty or 1
    below = x.clamp(max=0).mul_(factor)
    x.relu_().div_(factor).add_(below)


def _frequency(x: Tensor, counts: Tensor, frequency: Tensor, presence: Tensor) -> None:
    """Subtract `frequency` per occurrence in the output and `presence` once, as in OpenAI's API."""
    generated = (counts & (IN_PROMPT - 1)).float()
    x -= frequency * generated
    x -= presence * generated.clamp_(max=1)


def run_callables(x: Tensor, row: int, host: HostRow, history: History) -> str | None:
    """Step 1 for one row, in place. Reads the row's history back from the device.

    Args:
        x: (vocab,) float32 logits of the row.

    Returns:
        None, or the sentence to tell when a callable failed; it concerns this row only.
    """
    tokens = history.tokens[row, : int(history.known[row])].tolist()
    prompt, generated = tokens[: host.prompt_len], tokens[host.prompt_len :]
    for processor in host.processors:
        call = processor.call
        name = call.__name__ if isinstance(call, FunctionType) else type(call).__name__
        arguments = (prompt, generated) if processor.wants_prompt else (generated,)
        try:
            result = call(*(list(a) for a in arguments), x.clone())
        except Exception as error:  # whatever the user's code raises belongs to the user's request
            return f"logits processor {name} raised {type(error).__name__}: {error}"
        if not isinstance(result, Tensor) or result.shape != x.shape:
            return f"logits processor {name} must return a tensor of shape {tuple(x.shape)}"
        x.copy_(result)
        if not bool((x < torch.inf).all()):
            return f"logits processor {name} returned NaN or +inf; use -inf to exclude tokens"
    return None
