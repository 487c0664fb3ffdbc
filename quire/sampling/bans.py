"""Tokens that a row may not choose now: the last token of a bad word whose beginning stands there, or an end too early.

Both are one table of entries (row, token, prefix, until), which the op `edit_logits` reads: history and its length are
device tensors, so the rule is exact although the newest token may be known to the device only.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from quire.ops.edit import ANY_TOKEN, FOREVER, BanTable
from quire.sampling.sent import sent

LASTING_ENTRIES, LASTING_WIDTH = 4096, 8
"""Bans of all rows, and tokens before a banned one, that the lasting table has room for. As long as a running row
exceeds it, no edited batch is drawn for by a recording: neighbours have the same tokens later."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Bans of one row, on the host: token (e,), until (e,), length of the prefix (e,), prefix (e, width) right-aligned.

    All int64, as in `BanTable`.
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
        prefix=torch.tensor([[ANY_TOKEN] * (width + 1 - len(word)) + word[:-1] for word, _ in pairs]).long(),
    )


class Bans:
    """The bans of all rows. Changes are gathered on the host and uploaded once, before the next use."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self.max_rows = max_rows
        self.device = device
        self._rows: dict[int, Entries] = {}
        self._table: BanTable | None = None
        self._lasting: BanTable | None = None
        self._refreshed: BanTable | None = None

    def set(self, row: int, found: Entries) -> None:
        """The bans of `row` from now on."""
        self._rows[row] = found
        self._table = None

    def drop(self, row: int) -> None:
        """`row` has no bans any more."""
        if self._rows.pop(row, None) is not None:
            self._table = None

    def table(self) -> BanTable:
        """The bans of all rows, on the device."""
        if self._table is None:
            self._table = self._upload()
        return self._table

    def lasting(self) -> BanTable:
        """A table that stays where it is, so that it can be recorded. `refresh` brings it up to date."""
        if self._lasting is None:
            first = torch.zeros(self.max_rows + 1, dtype=torch.int64, device=self.device)
            row, token, until, length = torch.zeros(4, LASTING_ENTRIES, dtype=torch.int64, device=self.device)
            prefix = torch.zeros(LASTING_ENTRIES, LASTING_WIDTH, dtype=torch.int64, device=self.device)
            self._lasting = BanTable(first, row, token, until, length, prefix)
        return self._lasting

    def refresh(self) -> bool:
        """Bring the lasting table up to date, if it has room for all bans; whether it has."""
        new, lasting = self.table(), self.lasting()
        entries, width = new.prefix.shape
        if entries > LASTING_ENTRIES or width > LASTING_WIDTH:
            return False
        if self._refreshed is not new:
            lasting.first.copy_(new.first)
            lasting.until.zero_()  # what is left over has ended before it began
            lasting.row[:entries] = new.row
            lasting.token[:entries] = new.token
            lasting.until[:entries] = new.until
            lasting.length[:entries] = new.length
            lasting.prefix.fill_(ANY_TOKEN)
            lasting.prefix[:entries, LASTING_WIDTH - width :] = new.prefix
            self._refreshed = new
        return True

    def _upload(self) -> BanTable:
        found = [self._rows.get(row) for row in range(self.max_rows)]
        counts = [0 if e is None else len(e.token) for e in found]
        present = [e for e in found if e is not None]
        width = max((e.prefix.shape[1] for e in present), default=0)
        none = torch.zeros(0, dtype=torch.int64)

        def upload(parts: list[Tensor]) -> Tensor:
            return sent(torch.cat(parts or [none]), self.device)

        return BanTable(
            first=sent(torch.tensor([0, *accumulate(counts)]), self.device),
            row=upload([torch.full((count,), row) for row, count in enumerate(counts) if count]),
            token=upload([e.token for e in present]),
            until=upload([e.until for e in present]),
            length=upload([e.length for e in present]),
            prefix=upload([_widened(e.prefix, width) for e in present] or [none.unsqueeze(1)[:, :0]]),
        )


def _widened(prefix: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(prefix, (width - prefix.shape[1], 0), value=ANY_TOKEN)
