"""Rows of logits and tables that edit them, drawn at random, for tests of kernels against the op's reference."""

from typing import Any

import torch

from quire.ops.draw import FREQUENCY, PRESENCE, REPETITION, sample_table
from quire.ops.edit import ANY_TOKEN, FOREVER, IN_PROMPT, BanTable, EditTables, Slots

ROWS = 4


def random_edits(seed: int, vocab: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """The op's arguments for three of four rows; the lowest bits of `seed` say which tables there are."""
    generator = torch.Generator().manual_seed(seed)
    table = sample_table(vocab, [0.0] * ROWS, [0] * ROWS, [1.0] * ROWS, [0.0] * ROWS)
    for column, choices in ((REPETITION, [1.0, 1.3, 0.5, 1e30]), (FREQUENCY, [0.0, 0.7]), (PRESENCE, [0.0, -1.5])):
        table.numbers[:, column] = torch.tensor(choices)[torch.randint(len(choices), (ROWS,), generator=generator)]
    counts = torch.randint(0, 3, (ROWS, vocab), generator=generator, dtype=torch.int32)
    counts |= torch.randint(0, 2, (ROWS, vocab), generator=generator, dtype=torch.int32) * IN_PROMPT
    offsets = torch.randn(ROWS, vocab, generator=generator).masked_fill_(counts == 1, -torch.inf)
    counts[0], offsets[0] = 0, 0
    of_row = torch.randint(0, ROWS, (2, ROWS), generator=generator)
    parts: dict[str, Any] = {
        "offsets": Slots(offsets, of_row[0]),
        "counts": Slots(counts, of_row[1]),
        "bans": random_bans(generator, vocab),
        "masks": torch.randint(-(1 << 31), 1 << 31, (ROWS, -(-vocab // 32)), generator=generator).int(),
    }
    tables = EditTables(**{name: part for i, (name, part) in enumerate(parts.items()) if (seed >> i) & 1})
    logits = (torch.randn(3, vocab, generator=generator) * 4).to(dtype)
    history = torch.randint(0, 3, (ROWS, 8), generator=generator, dtype=torch.int32)
    known = torch.randint(1, 6, (ROWS,), generator=generator, dtype=torch.int32)
    return logits, torch.randperm(ROWS, generator=generator)[:3], table, tables, history, known


def random_bans(generator: torch.Generator, vocab: int) -> BanTable:
    """Some bans of each row."""

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    counts = integers(0, 4, ROWS)
    row = torch.arange(ROWS).repeat_interleave(counts)
    length = integers(0, 3, len(row))
    prefix = integers(0, 3, len(row), 2)
    prefix[torch.arange(2) < 2 - length[:, None]] = ANY_TOKEN
    until = torch.where(integers(0, 2, len(row)) == 1, FOREVER, 3)
    return BanTable(
        torch.cat([torch.zeros(1).long(), counts.cumsum(0)]), row, integers(0, vocab, len(row)), until, length, prefix
    )
