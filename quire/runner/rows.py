"""`Rows`: what a rank keeps on its device for each running sequence.

The scheduler names rows by index; plans are diffs that this class applies. Positions live here and nowhere else, so a
token sampled on the device feeds the next step without the host knowing it. Called by the runner only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.messages.plan import NewRow, StepPlan
from quire.messages.state import Layout


@dataclass(slots=True)
class HostRow:
    """What the host knows of a row: its parameters, how many tokens are computed, pages per group."""

    new: NewRow
    computed: int
    pages: list[int]


class Rows:
    """Per-sequence device state.

    Attributes:
        tokens: (rows, max_len + 1) int32, all known tokens of each row, the prompt first.
        known: (rows,) int32, how many of them are valid.
        computed: (rows,) int32, how many have their state in pages.
        page_tables: per cache group (rows, max_pages) int32; unused entries are 0.
        host: what the host knows, for rows in use.
    """

    def __init__(self, rows: int, max_len: int, layout: Layout, device: torch.device) -> None:
        self.device = device
        # One column of slack: a plan in flight may sample past the end of a sequence that has just finished.
        self.tokens = torch.zeros(rows, max_len + 1, dtype=torch.int32, device=device)
        self.known = torch.zeros(rows, dtype=torch.int32, device=device)
        self.computed = torch.zeros(rows, dtype=torch.int32, device=device)
        self.page_tables = [
            torch.zeros(rows, -(-max_len // g.page_size), dtype=torch.int32, device=device) for g in layout.groups
        ]
        self.page_sizes = [g.page_size for g in layout.groups]
        self.host: dict[int, HostRow] = {}

    def apply(self, plan: StepPlan) -> None:
        """Apply the plan's diff: rows that leave, rows that begin, pages that are added."""
        for row in plan.released:
            self.host.pop(row, None)
        for new in plan.new:
            self._begin(new)
        for group in range(len(self.page_tables)):
            self._append_pages(plan, group)

    def advance(self, plan: StepPlan, order: Tensor, counts: Tensor) -> None:
        """Count the plan's tokens as computed. order (grants,) int64 rows, counts (grants,) int32."""
        self.computed.index_add_(0, order, counts)
        for grant in plan.grants:
            self.host[grant.row].computed += grant.tokens

    def append(self, rows: Tensor, tokens: Tensor) -> None:
        """Add one sampled token to each row. rows, tokens: (n,) int64."""
        self.tokens[rows, self.known[rows].long()] = tokens.int()
        self.known[rows] += 1

    def _begin(self, new: NewRow) -> None:
        row, count = new.row, len(new.token_ids)
        self.tokens[row, :count] = torch.tensor(new.token_ids, dtype=torch.int32)
        self.known[row] = count
        self.computed[row] = new.computed
        for table, pages in zip(self.page_tables, new.pages, strict=True):
            table[row].zero_()
            if pages:
                table[row, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        self.host[row] = HostRow(new, new.computed, [len(pages) for pages in new.pages])

    def _append_pages(self, plan: StepPlan, group: int) -> None:
        rows: list[int] = []
        columns: list[int] = []
        pages: list[int] = []
        for grant in plan.grants:
            added = grant.new_pages[group]
            if added:
                have = self.host[grant.row].pages
                rows += [grant.row] * len(added)
                columns += range(have[group], have[group] + len(added))
                pages += added
                have[group] += len(added)
        if pages:
            at = torch.tensor([rows, columns], device=self.device)
            values = torch.tensor(pages, dtype=torch.int32, device=self.device)
            self.page_tables[group].index_put_((at[0], at[1]), values)
