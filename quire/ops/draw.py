"""The op that draws one random token per row: temperature, min_p, top_k, top_p, and noise by the Gumbel-max trick.

Settings lie in tables on the device, one line per row, so that nothing need be known of a row to draw for it; `groups`
tell a provider what the host knows, which spares work. Because noise belongs to the token id and not to its place, all
ways to draw give the same token.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor

from quire.ops.noise import log_exponential, row_keys, seed_key
from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal
from quire.ops.topk import candidates, drop_improbable, kept

TEMPERATURE, TOP_P, LOG_MIN_P, REPETITION, FREQUENCY, PRESENCE = range(6)
"""Columns of `RowTable.numbers`."""

TOP_K, SEED = range(2)
"""Columns of `RowTable.integers`."""


@dataclass(frozen=True, slots=True)
class RowTable:
    """How each row samples, on the device.

    Attributes:
        numbers: (max_rows, 6) float32. A temperature of 0 takes the most probable token; a top_p of 1 and a log_min_p
            of -inf drop nothing.
        integers: (max_rows, 2) int64: top_k in [1, vocab], vocab dropping nothing; the key of the row's seed.
    """

    numbers: Tensor
    integers: Tensor


class Kind(Enum):
    """How a row draws."""

    PLAIN = auto()
    """Neither top_k nor top_p."""
    SHORT = auto()
    """A small top_k."""
    NUCLEUS = auto()
    """top_p without top_k."""
    SORTED = auto()
    """Anything."""


@dataclass(frozen=True, slots=True)
class Group:
    """Lines that draw alike and are worked on together.

    Attributes:
        at: the lines, (g,) int64 on the device; None for all of the batch.
        kind: how they draw.
        width: the largest top_k among them.
        min_p: whether any of them has one.
    """

    at: Tensor | None
    kind: Kind
    width: int
    min_p: bool


def _samples() -> Iterator[tuple[Any, dict[str, Any]]]:
    for dtype, vocab in zip((*FLOATS, "float32"), (300, 1000, 17), strict=True):
        logits = normal(dtype, 16, vocab) * 3
        logits[1, 7], logits[2, 3], logits[3] = torch.nan, torch.inf, -torch.inf
        logits[4] = 1.5  # all equal
        logits[5, 2:] = -torch.inf
        table = sample_table(
            vocab,
            temperature=[0.0, 0.7, 0.7, 0.7, 1.0, 1.0, 1.0, 0.7, 1.3, 0.5, 0.0, 1.0, 1e-4, 2.0, 1.0, 1.0],
            top_k=[0, 5, 5, 5, 6, 9, 0, 0, 11, 4, 7, vocab - 1, 9, 15, 1, 0],
            top_p=[1.0, 0.9, 0.9, 1.0, 1.0, 0.8, 1.0, 0.9, 0.7, 1.0, 0.5, 0.999, 1.0, 1.0, 1.0, 1e-9],
            min_p=[0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.05, 0.0, 0.02, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        )
        rows = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 15, 14, 13, 12, 11, 10, 9, 8])
        known = torch.arange(16, dtype=torch.int32)
        yield None, {"logits": logits, "rows": rows, "known": known, "table": table}


def sample_table(
    vocab: int, temperature: list[float], top_k: list[int], top_p: list[float], min_p: list[float]
) -> RowTable:
    """A table for samples and measurements; the row's index is its seed, a top_k of 0 stands for the vocabulary."""
    count = len(temperature)
    numbers = torch.ones(count, 6)
    numbers[:, TEMPERATURE] = torch.tensor(temperature)
    numbers[:, TOP_P] = torch.tensor(top_p)
    numbers[:, LOG_MIN_P] = torch.tensor(min_p).log()
    numbers[:, [FREQUENCY, PRESENCE]] = 0
    integers = torch.tensor([[k or vocab, seed_key(i)] for i, k in enumerate(top_k)])
    return RowTable(numbers, integers)


@op(samples=_samples)
def draw_tokens(
    logits: Tensor, rows: Tensor, known: Tensor, table: RowTable, groups: tuple[Group, ...] | None = None
) -> Tensor:
    """The next token of each row.

    With temperature, in this order: min_p drops tokens less probable than min_p times the most probable one; the top_k
    largest logits remain, equal ones by id; of these the fewest that hold top_p of their probability.

    Args:
        logits: (n, vocab) of any floating type.
        rows: (n,) int64, the line of `table` and `known` that each line of logits has.
        known: (max_rows,) int32: the position that the token will have.
        table: settings.
        groups: every line that draws at random, in one group each; None where the host does not know.

    Returns: (2, n) int64. Line 0: tokens, 0 where a row's maximum is not finite. Line 1: 1 there, 0 elsewhere.
    """
    top, first = logits.max(-1)
    bad = ~top.isfinite()
    tokens = torch.where(table.numbers[rows, TEMPERATURE] == 0, first, _random(logits, rows, known, table))
    return torch.stack([tokens.masked_fill(bad, 0), bad.long()])


def _random(logits: Tensor, rows: Tensor, known: Tensor, table: RowTable) -> Tensor:
    numbers, integers = table.numbers[rows].unsqueeze(2), table.integers[rows]
    values, ids = candidates(logits.float(), logits.shape[1])
    x = scaled(values, values[:, :1], numbers[:, TEMPERATURE])
    mask, _ = kept(drop_improbable(x, numbers[:, LOG_MIN_P]), integers[:, :1], numbers[:, TOP_P])
    noise = log_exponential(row_keys(integers[:, SEED], known[rows].long()), ids.int())
    best = x.sub_(noise).masked_fill_(~mask, -torch.inf).argmax(-1, keepdim=True)
    return ids.gather(1, best).squeeze(1)


def scaled(x: Tensor, top: Tensor, temperature: Tensor) -> Tensor:
    """Logits over temperature, with the maximum at 0.

    Args:
        x: (n, m) float32.
        top: (n, 1), maximum of each row.
        temperature: (n, 1) float32; 0 counts as 1.
    """
    # The maximum becomes 0 before the division, so that no temperature can make an infinity.
    return (x - top).div_(temperature.masked_fill(temperature == 0, 1))
