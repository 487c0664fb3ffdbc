"""The op that changes logits before a token is chosen, by tables of the rows that it is for.

In this order: logit_bias and allowed_token_ids, then repetition, frequency and presence penalty, then bans, as in vLLM;
then masks of grammars. All of the reference is float arithmetic: on CPUs selecting by a mask costs ten times as much as
multiplying by 0 and 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from quire.ops.draw import FREQUENCY, PRESENCE, REPETITION, RowTable, sample_table
from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal

IN_PROMPT = 1 << 30
"""Bit of a penalty count that says: this token is in the prompt. The bits below count occurrences in the output."""

ANY_TOKEN = -1
"""Stands for any token in a ban's prefix."""

FOREVER = 1 << 40
"""A ban that never ends."""

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class Slots:
    """A table (slots, vocab), and each row's slot, (max_rows,) int64. Slot 0 is zeros, for rows without one."""

    table: Tensor
    of_row: Tensor

    def gather(self, rows: Tensor) -> Tensor:
        """The entries of each row: (n,) int64 to (n, vocab)."""
        return self.table.index_select(0, self.of_row[rows])


@dataclass(frozen=True, slots=True)
class BanTable:
    """Bans of all rows, those of a row one after another.

    A token is banned while the row knows fewer than `until` tokens and its last tokens are the prefix.

    Attributes:
        first: (max_rows + 1,) int64: entries first[row] to first[row + 1] are the row's.
        row, token, until, length: (e,) int64; `length` is that of the prefix.
        prefix: (e, width) int64, right-aligned; ANY_TOKEN before it.
    """

    first: Tensor
    row: Tensor
    token: Tensor
    until: Tensor
    length: Tensor
    prefix: Tensor


@dataclass(frozen=True, slots=True)
class EditTables:
    """What edits logits; None where no row of the batch needs it, neutral for rows that do not.

    Attributes:
        offsets: float32, what is added.
        counts: int32: occurrences in the output, and IN_PROMPT.
        bans: tokens that must not come now.
        masks: (max_rows, words) int32: bit t % 32 of word t // 32 says whether token t may come.
    """

    offsets: Slots | None = None
    counts: Slots | None = None
    bans: BanTable | None = None
    masks: Tensor | None = None


def _samples() -> Iterator[tuple[Any, dict[str, Any]]]:
    generator = torch.Generator().manual_seed(0)
    for dtype, vocab in zip((*FLOATS, "float32"), (200, 64, 17), strict=True):
        logits = normal(dtype, 4, vocab) * 3
        logits[0, 3], logits[2, 5] = -torch.inf, torch.nan
        table = sample_table(vocab, [0.0] * 5, [0] * 5, [1.0] * 5, [0.0] * 5)
        table.numbers[:, REPETITION] = torch.tensor([1.0, 1.3, 1e-30, 0.7, 1.0])
        table.numbers[:, FREQUENCY] = torch.tensor([0.0, 0.5, -1.0, 0.0, 0.3])
        table.numbers[:, PRESENCE] = torch.tensor([0.0, 0.2, 0.0, -1.5, 0.0])
        counts = torch.randint(0, 4, (3, vocab), generator=generator, dtype=torch.int32)
        counts |= torch.randint(0, 2, (3, vocab), generator=generator, dtype=torch.int32) << 30
        offsets = torch.randn(2, vocab, generator=generator).masked_fill_(counts[1:] % 4 == 1, -torch.inf)
        counts[0], offsets[0] = 0, 0
        bans = BanTable(
            first=torch.tensor([0, 0, 2, 2, 5, 5]),
            row=torch.tensor([1, 1, 3, 3, 3]),
            token=torch.tensor([4, 9, 1, 2, 3]),
            until=torch.tensor([FOREVER, 3, FOREVER, FOREVER, 9]),
            length=torch.tensor([2, 0, 1, 2, 0]),
            prefix=torch.tensor([[7, 8], [-1, -1], [-1, 6], [5, 6], [-1, -1]]),
        )
        masks = torch.randint(-(1 << 31), 1 << 31, (5, -(-vocab // 32)), generator=generator).int()
        masks[2] = -1
        of_counts, of_offsets = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 0, 1, 0])
        given = {"logits": logits, "rows": torch.tensor([3, 1, 2, 0]), "table": table}
        given |= {"history": torch.tensor([[7, 8, 0]] * 3 + [[5, 6, 0]] * 2, dtype=torch.int32)}
        given |= {"known": torch.tensor([2, 2, 1, 2, 3], dtype=torch.int32)}
        for parts in (
            {"offsets": Slots(offsets, of_offsets)},
            {"counts": Slots(counts, of_counts)},
            {"bans": bans},
            {"masks": masks},
            {"offsets": Slots(offsets, of_offsets), "counts": Slots(counts, of_counts), "bans": bans, "masks": masks},
            {},
        ):
            yield None, given | {"tables": EditTables(**parts)}


@op(samples=_samples, batch_invariant=True)
def edit_logits(
    logits: Tensor, rows: Tensor, table: RowTable, tables: EditTables, history: Tensor, known: Tensor
) -> Tensor:
    """Logits after bias, penalties, bans and masks, (n, vocab) float32; `logits` stay as they are.

    Args:
        logits: (n, vocab) of any floating type.
        rows: (n,) int64, the row of each line, each at most once.
        table: its numbers hold the penalties.
        tables: what is applied.
        history: (max_rows, max_len) int32, known tokens of each row.
        known: (max_rows,) int32, how many of them are valid.
    """
    x = logits.float()
    x = x + tables.offsets.gather(rows) if tables.offsets is not None else x.clone()
    if tables.counts is not None:
        numbers = table.numbers[rows].unsqueeze(2)
        counts = tables.counts.gather(rows)
        _repetition(x, counts, numbers[:, REPETITION])
        _frequency(x, counts, numbers[:, FREQUENCY], numbers[:, PRESENCE])
    # Dividing by a tiny penalty may leave float32; two infinities would make NaN.
    x.clamp_(max=_LARGEST)
    if tables.bans is not None:
        _ban(x, rows, tables.bans, history, known)
    if tables.masks is not None:
        x += _offsets_of(tables.masks[rows])[:, : x.shape[1]]
    return x


def _offsets_of(masks: Tensor) -> Tensor:
    """(n, words) int32 to (n, 32 * words) float32: 0 where a bit is set and -inf elsewhere, the lowest bit first."""
    bits = torch.arange(256, device=masks.device)[:, None] >> torch.arange(8, device=masks.device) & 1
    of_byte = torch.where(bits.bool(), 0.0, -torch.inf)
    # One look-up brings all eight tokens of a byte.
    return embedding(masks.view(torch.uint8).int(), of_byte).view(len(masks), -1)


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


def _ban(x: Tensor, rows: Tensor, bans: BanTable, history: Tensor, known: Tensor) -> None:
    place = torch.full((len(known),), -1, dtype=torch.int64, device=x.device)
    place[rows] = torch.arange(len(rows), device=x.device)
    line = place[bans.row]
    active = _active(bans, history, known.long()[bans.row]) & (line >= 0)
    flat = line.clamp_(min=0) * x.shape[1] + bans.token
    # Adding 0 leaves a logit as it is: entries of rows that are not in this batch land harmlessly on line 0.
    amount = torch.where(active, -torch.inf, 0.0)
    x.view(-1).scatter_add_(0, flat, amount)


def _active(bans: BanTable, history: Tensor, have: Tensor) -> Tensor:
    width = bans.prefix.shape[1]
    active = (have < bans.until) & (have >= bans.length)
    if width:
        columns = have.unsqueeze(1) + torch.arange(-width, 0, device=have.device)
        tail = history[bans.row.unsqueeze(1), columns.clamp_(min=0)]
        active &= ((tail == bans.prefix) | (bans.prefix == ANY_TOKEN)).all(1)
    return active
