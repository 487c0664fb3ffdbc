"""The op that draws the most probable token: all that a greedy batch needs of a sampler.

It also tells rows whose logits are not finite, from the same pass over them: the maximum of such a row is not finite.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal


def _samples() -> Iterator[tuple[Any, dict[str, Any]]]:
    for dtype in FLOATS:
        logits = normal(dtype, 5, 1000)
        logits[1, 7], logits[2, 3], logits[3] = torch.nan, torch.inf, -torch.inf
        logits[4, 600] = logits[4, 20] = 100.0  # the first of equals
        yield None, {"logits": logits}


@op(samples=_samples, batch_invariant=True)
def greedy_sample(logits: Tensor) -> Tensor:
    """The most probable token of each row, the first of equals.

    Args:
        logits: (n, vocab) of any floating type.

    Returns: (2, n) int64. Line 0: tokens, 0 where a row's maximum is not finite. Line 1: 1 there, 0 elsewhere.
    """
    top, tokens = logits.max(-1)
    bad = ~top.isfinite()
    return torch.stack([tokens.masked_fill(bad, 0), bad.long()])
