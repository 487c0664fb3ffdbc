"""Log-probabilities to report: log-softmax in float32 of the model's own logits, before anything changes them.

Tokens of equal probability are ranked by id, so ranks are unique and the most probable token has rank 1. Called by the
sampler for generated tokens and by the runner for prompts, in slices of rows that bound memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.messages.plan import TokenLogprobs
from quire.sampling.topk import candidates


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Reduced on the device: ids and values (n, 1 + top), the chosen token first; ranks (n,). int64, float32, int64."""

    ids: Tensor
    values: Tensor
    ranks: Tensor


def describe(logits: Tensor, chosen: Tensor, top: int) -> Logprobs:
    """Log-probabilities of chosen tokens and of the `top` most probable ones.

    Args:
        logits: (n, vocab), the model's.
        chosen: (n,) int64.
        top: how many besides the chosen token; more than the vocabulary means all of it.
    """
    values = logits.float().log_softmax(-1)
    chosen = chosen.unsqueeze(1)
    own = values.gather(1, chosen)
    ranks = _ahead(values, own, chosen).long() + 1
    top = min(top, values.shape[1])
    if top == 0:
        return Logprobs(chosen, own, ranks)
    best, best_ids = candidates(values, top)
    return Logprobs(torch.cat([chosen, best_ids], 1), torch.cat([own, best], 1), ranks)


def _ahead(values: Tensor, own: Tensor, chosen: Tensor) -> Tensor:
    """How many tokens are before the chosen one, (n,) float32: more probable, or equally and with a lower id."""
    ids = torch.arange(values.shape[1], dtype=torch.int32, device=values.device)
    lower = torch.lt(ids, chosen.int(), out=torch.empty_like(values))
    equal = torch.eq(values, own, out=torch.empty_like(values))
    return torch.gt(values, own, out=torch.empty_like(values)).add_(equal.mul_(lower)).sum(-1)


def prompt_logprobs(logits: Tensor, targets: Tensor, top: int) -> list[TokenLogprobs]:
    """What the logits of prompt tokens say of the tokens that follow them. Waits for the device.

    Args:
        logits: (n, vocab); give at most a few hundred rows at once.
        targets: (n,), the token that follows each.
        top: how many of the most probable tokens to add.
    """
    found = describe(logits, targets.long(), top)
    return to_list(found.ids.tolist(), found.values.tolist(), found.ranks.tolist())


def to_list(ids: list[list[int]], values: list[list[float]], ranks: list[int]) -> list[TokenLogprobs]:
    """One message per row."""
    return [TokenLogprobs(i, v, r) for i, v, r in zip(ids, values, ranks, strict=True)]
