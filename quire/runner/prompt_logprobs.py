"""Log-probabilities of the tokens of prompts: from the hidden states of a step, in slices.

Called by the runner, on every rank, for steps that read prompts.
"""

from collections.abc import Sequence

from torch import Tensor

from quire.messages.plan import Grant, TokenLogprobs
from quire.models import Model
from quire.runner.rows import Rows
from quire.sampling.kernels import Kernels
from quire.sampling.logprobs import prompt_logprobs

HEAD_SLICE = 256
"""Rows of logits made at once; bounds the memory that a long prompt takes."""


def wants_prompt_logprobs(rows: Rows, grants: Sequence[Grant]) -> bool:
    """Whether a step needs the hidden state of every token, because some row's prompt is to be described."""
    return any(rows.host[grant.row].new.params.prompt_logprobs is not None for grant in grants)


def describe_prompts(
    rows: Rows, grants: Sequence[Grant], hidden: Tensor, model: Model, kernels: Kernels
) -> dict[int, list[TokenLogprobs]]:
    """By row, for each prompt token computed now that has a successor in the prompt: the entry describes the successor.

    Args:
        grants: in the order in which their tokens were computed.
        hidden: (tokens, hidden) of all of them.
    """
    found: dict[int, list[TokenLogprobs]] = {}
    start = 0
    for grant in grants:
        host = rows.host[grant.row]
        wanted = host.new.params.prompt_logprobs
        count = min(grant.tokens, host.new.prompt_len - 1 - host.computed)
        if wanted is not None and count > 0:
            targets = rows.tokens[grant.row, host.computed + 1 : host.computed + 1 + count].long()
            found[grant.row] = _describe(hidden[start : start + count], targets, wanted, model, kernels)
        start += grant.tokens
    return found


def _describe(hidden: Tensor, targets: Tensor, top: int, model: Model, kernels: Kernels) -> list[TokenLogprobs]:
    entries: list[TokenLogprobs] = []
    for first in range(0, len(targets), HEAD_SLICE):
        logits = model.logits(hidden[first : first + HEAD_SLICE])
        entries += prompt_logprobs(logits, targets[first : first + HEAD_SLICE], top, kernels)
    return entries
