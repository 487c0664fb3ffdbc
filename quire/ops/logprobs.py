"""The op that describes chosen tokens: log-softmax in float32 of logits, and the most probable tokens beside them.

Tokens of equal probability are ranked by id, so ranks are unique and the most probable token has rank 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal
from quire.ops.topk import candidates


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Reduced on the device: ids and values (n, 1 + top), the chosen token first; ranks (n,). int64, float32, int64."""

    ids: Tensor
    values: Tensor
    ranks: Tensor


def _samples() -> Iterator[tuple[Any, dict[str, Any]]]:
    for dtype, vocab in zip((*FLOATS, "float32"), (300, 1000, 17), strict=True):
        logits = normal(dtype, 4, vocab) * 3
        logits[1] = 2.0  # all equal
        logits[2, 3:] = -torch.inf
        for top in (0, 1, 3, 9):
            yield None, {"logits": logits, "chosen": torch.tensor([5, 9, 1, vocab - 1]), "top": top}


@op(samples=_samples, batch_invariant=True)
def token_logprobs(logits: Tensor, chosen: Tensor, top: int, wanted: Tensor | None = None) -> Logprobs:
    """Log-probabilities of chosen tokens and of the `top` most probable ones.

    Args:
        logits: (n, vocab) of any floating type; a row with NaN or an infinity above gets NaN.
        chosen: (n,) int64.
        top: how many besides the chosen token; more than the vocabulary means all of it.
        wanted: (n,) int32, how many of these each row wants, negative where not even the chosen token is: what is not
            wanted may hold anything, which spares work. None: all.
    """
    values = logits.float().log_softmax(-1)
    chosen = chosen.unsqueeze(1)
    own = values.gather(1, chosen)
    ranks = _ahead(logits.float(), chosen) + 1
    top = min(top, values.shape[1])
    if top == 0:
        return Logprobs(chosen, own, ranks)
    _, best_ids = candidates(logits.float(), top)
    return Logprobs(torch.cat([chosen, best_ids], 1), torch.cat([own, values.gather(1, best_ids)], 1), ranks)


def _ahead(x: Tensor, chosen: Tensor) -> Tensor:
    """How many tokens are before the chosen one, (n,) int64: larger, or equal and with a lower id."""
    own = x.gather(1, chosen)
    ids = torch.arange(x.shape[1], dtype=torch.int32, device=x.device)
    lower = torch.lt(ids, chosen.int(), out=torch.empty_like(x))
    equal = torch.eq(x, own, out=torch.empty_like(x))
    return torch.gt(x, own, out=torch.empty_like(x)).add_(equal.mul_(lower)).sum(-1).long()
