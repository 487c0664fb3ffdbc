"""The op that enters sampled tokens into the rows, where the next step reads them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from quire.ops.registry import op


def _samples() -> Iterator[tuple[Any, dict[str, Any]]]:
    generator = torch.Generator().manual_seed(0)
    yield (
        None,
        {
            "rows": torch.tensor([4, 0, 2]),
            "drawn": torch.tensor([7, 9, 11]),
            "tokens": torch.randint(0, 50, (6, 20), generator=generator, dtype=torch.int32),
            "known": torch.tensor([3, 5, 19, 1, 0, 8], dtype=torch.int32),
        },
    )


@op(samples=_samples, batch_invariant=True)
def append_tokens(rows: Tensor, drawn: Tensor, tokens: Tensor, known: Tensor) -> None:
    """Append one token to each row, in place.

    Args:
        rows: (n,) int64; only a row whose token nobody reads may occur twice.
        drawn: (n,) int64, the token of each.
        tokens: (rows, max_len) int32, known tokens of all rows.
        known: (rows,) int32, how many of them are valid; grows by one for each of `rows`.
    """
    tokens[rows, known[rows].long()] = drawn.int()
    known[rows] += 1
