"""Tokens that a row may not choose now: the last token of a bad word whose beginning stands there, or an end too early.

Both are one table of entries (row, token, prefix, until): the token is banned while the row knows fewer than `until`
tokens and its last tokens equal the prefix. History and its length are device tensors, so the rule is exact although
the newest token may be known to the device only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FOREVER = 1 << 40
_ANY = -1


@dataclass(frozen=True, slots=True)
class Entries:
    """Bans of one row, on the host: token (e,), until (e,), length of the prefix (e,), prefix (e, width) right-aligned.

    All int64; the unused left part of a prefix is -1 and matches anything.
    """

    token: Tensor
    until: Tensor
    length: Tensor
    prefix: Tensor


def entries(words: list[list[int]], early: set[int], until: int, vocab: int) -> Entries | None:
    """The bans of one row, or None if there are none.

    Args:
        words: token sequences that must never be completed.
        early: tokens that must not be chosen before the row knows `until` tokens.
        vocab: tokens at or above it cannot be chosen anyway and are left out.
    """
    pairs = [(word, FOREVER) for word in words if word] + [([token], until) for token in sorted(early)]
    pairs = [(word, end) for word, end in pairs if 0 <= word[-1] < vocab]
    if not pairs:
        return None
    width = max(len(word) for word, _ in pairs) - 1
    return Entries(
        token=torch.tensor([word[-1] for word, _ in pairs]),
        until=torch.tensor([end for _, end in pairs]),
        length=torch.tensor([len(word) - 1 for word, _ in pairs]),
        prefix=torch.tensor([[_ANY] * (width + 1 - len(word)) + word[:-1] for word, _ in pairs], dtype=torch.int64),
    )


class Bans:
    """The bans of all rows. Changes are gathered on the host and uploaded once, before the next use."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self.max_rows = max_rows
        self.device = device
        self._rows: dict[int, Entries] = {}
        self._changed = False
        self._row = torch.zeros(0, dtype=torch.int64, device=device)
        self._table = Entries(self._row, self._row, self._row, self._row.unsqueeze(1))

    def set(self, row: int, found: Entries) -> None:
        """The bans of `row` from now on."""
        self._rows[row] = found
        self._changed = True

    def drop(self, row: int) -> None:
        """`row` has no bans any more."""
        if self._rows.pop(row, None) is not None:
            self._changed = True

    def apply(self, x: Tensor, rows: Tensor, history: Tensor, known: Tensor) -> None:
        """Set banned tokens to -inf, in place.

        Args:
            x: (n, vocab) float32 logits.
            rows: (n,) int64, the row of each line of x.
            history: (max_rows, max_len) int32, known tokens of each row.
            known: (max_rows,) int32, how many of them are valid.
        """
        self._upload()
        place = torch.full((self.max_rows,), -1, dtype=torch.int64, device=self.device)
        place[rows] = torch.arange(len(rows), device=self.device)
        line = place[self._row]
        active = self._active(history, known.long()[self._row]) & (line >= 0)
        flat = line.clamp_(min=0) * x.shape[1] + self._table.token
        # Adding 0 leaves a logit as it is: entries of rows that are not in this batch land harmlessly on line 0.
        amount = torch.where(active, -torch.inf, 0.0)
        x.view(-1).scatter_add_(0, flat, amount)

    def _active(self, history: Tensor, have: Tensor) -> Tensor:
        table = self._table
        width = table.prefix.shape[1]
        active = (have < table.until) & (have >= table.length)
        if width:
            columns = have.unsqueeze(1) + torch.arange(-width, 0, device=self.device)
            tail = history[self._row.unsqueeze(1), columns.clamp_(min=0)]
            active &= ((tail == table.prefix) | (table.prefix == _ANY)).all(1)
        return active

    def _upload(self) -> None:
        if not self._changed:
            return
        self._changed = False
        found = list(self._rows.values())
        if not found:
            self._row = self._row[:0]
            self._table = Entries(self._row, self._row, self._row, self._row.unsqueeze(1)[:, :0])
            return
        width = max(e.prefix.shape[1] for e in found)
        counts = torch.tensor([len(e.token) for e in found])
        self._row = torch.tensor(list(self._rows)).repeat_interleave(counts).to(self.device)
        self._table = Entries(
            token=torch.cat([e.token for e in found]).to(self.device),
            until=torch.cat([e.until for e in found]).to(self.device),
            length=torch.cat([e.length for e in found]).to(self.device),
            prefix=torch.cat([_widened(e.prefix, width) for e in found]).to(self.device),
        )


def _widened(prefix: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(prefix, (width - prefix.shape[1], 0), value=_ANY)
