"""`Rows`: what a rank keeps on its device for each running sequence.

The scheduler names rows by index; plans are diffs that this class applies. Positions live here and nowhere else, so a
token sampled on the device feeds the next step without the host knowing it. Called by the runner only.
"""

from array import array
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quire.messages.plan import NewRow, SharedPages, StepPlan
from quire.messages.state import Layout
from quire.ops.step import SharedInputs, StepInputs
from quire.runner.upload import upload, upload_short

MOST_PADDING = 1 << 18
"""Tokens' numbers that may be sent for nothing, a megabyte. Beyond, rows of about the same length travel together, and
less than half of what is sent is padding."""

LEAST_SAVED = 96 << 20
"""Bytes that must be saved in each layer: on an H200, two more kernels take as long as reading 60 to 90 MB."""


@dataclass(slots=True)
class HostRow:
    """What the host knows of a row: its parameters, how many tokens are computed, pages per group."""

    new: NewRow
    computed: int
    pages: list[int]


class Rows:
    """Per-sequence device state. Beside the scheduler's rows there is a dummy one, which pads recorded batches.

    Attributes:
        max_len: tokens that a row has room for.
        dummy: index of the dummy row. It has computed nothing and its pages are page 0.
        tokens: (rows + 1, max_len + 1) int32, all known tokens of each row, the prompt first.
        known: (rows + 1,) int32, how many of them are valid.
        computed: (rows + 1,) int32, how many have their state in pages.
        page_tables: per cache group (rows + 1, max_pages) int32; unused entries are 0.
        shared: (cache groups, 2, rows + 1) int32: for each row the number of those that begin with the same pages, -1
            for none, and how many tokens these pages hold.
        sharing: whether there are such rows, and reading their beginnings once saves more than it costs.
        lasting: per cache group whether there can be: a group that forgets tokens shares nothing for long.
        ones, lines: (rows,) constants: the counts of a decode step, and which of its sequences sample.
        host: what the host knows, for rows in use.
    """

    def __init__(self, rows: int, max_len: int, layout: Layout, device: torch.device) -> None:
        self.device = device
        self.max_len = max_len
        self.dummy = rows
        # One column of slack: a plan in flight may sample past the end of a sequence that has just finished.
        self.tokens = torch.zeros(rows + 1, max_len + 1, dtype=torch.int32, device=device)
        self.known = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        self.computed = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        self.page_tables = [
            torch.zeros(rows + 1, -(-max_len // g.page_size), dtype=torch.int32, device=device) for g in layout.groups
        ]
        self.shared = torch.zeros(len(layout.groups), 2, rows + 1, dtype=torch.int32, device=device)
        self.shared[:, 0] = -1
        self.sharing = False
        self._token_bytes = [group.spec.bytes_per_token for group in layout.groups]
        self._least_saved = 0 if device.type == "cpu" else LEAST_SAVED
        rules = [group.spec.retention for group in layout.groups]
        self.lasting = [rule.window is None and rule.chunk is None for rule in rules]
        self.ones = torch.ones(rows, dtype=torch.int32, device=device)
        self.lines = torch.arange(rows, device=device)
        self.page_sizes = [g.page_size for g in layout.groups]
        self.host: dict[int, HostRow] = {}

    def apply(self, plan: StepPlan) -> None:
        """Apply the plan's diff: rows that leave, rows that begin, who begins alike, pages that are added."""
        for row in plan.released:
            self.host.pop(row, None)
        for new_rows in _batches(plan.new):
            self._begin(new_rows)
        if plan.shared is not None:
            self._share(plan.shared)
        for group in range(len(self.page_tables)):
            self._append_pages(plan, group)

    def shared_by(self, order: Tensor, step: StepInputs) -> StepInputs:
        """`step`, of the rows in `order`, (n,) int64, with which of them begin alike in groups that keep tokens."""
        found = self.shared.index_select(2, order)
        groups = (
            replace(group, shared=SharedInputs(found[i, 0], found[i, 1])) if self.lasting[i] else group
            for i, group in enumerate(step.groups)
        )
        return replace(step, groups=tuple(groups))

    def advance(self, plan: StepPlan) -> None:
        """The host's count of computed tokens; the device's is the business of the step."""
        for grant in plan.grants:
            self.host[grant.row].computed += grant.tokens

    def _begin(self, new_rows: list[NewRow]) -> None:
        """All numbers of the rows travel in one copy, as many for each; then each kind finds its places in one go."""
        count = len(new_rows)
        kinds = [[new.token_ids for new in new_rows]]
        kinds += [[new.pages[group] for new in new_rows] for group in range(len(self.page_tables))]
        widths = [max(map(len, lists)) for lists in kinds]
        values = array("i", [new.row for new in new_rows])
        values.extend([len(new.token_ids) for new in new_rows])
        values.extend([new.computed for new in new_rows])
        for lists, width in zip(kinds, widths, strict=True):
            for numbers in lists:
                values.fromlist(numbers)
                values.frombytes(bytes(values.itemsize * (width - len(numbers))))
        arrived = torch.split(upload_short(values, self.device), [count] * 3 + [count * width for width in widths])
        rows = arrived[0].long()
        self.known.index_copy_(0, rows, arrived[1])
        self.computed.index_copy_(0, rows, arrived[2])
        for target, found, width in zip((self.tokens, *self.page_tables), arrived[3:], widths, strict=True):
            target[:, :width].index_copy_(0, rows, found.view(count, width))
            target[:, width:].index_fill_(0, rows, 0)
        for new in new_rows:
            self.host[new.row] = HostRow(new, new.computed, [len(pages) for pages in new.pages])

    def _share(self, groups: list[list[SharedPages]]) -> None:
        """All of it in one copy: who begins alike changes when rows come and go, not from step to step."""
        values = array("i")
        for beginnings, page_size in zip(groups, self.page_sizes, strict=True):
            numbers, tokens = [-1] * (self.dummy + 1), [0] * (self.dummy + 1)
            for number, beginning in enumerate(beginnings):
                for row in beginning.rows:
                    numbers[row], tokens[row] = number, beginning.pages * page_size
            values.fromlist(numbers + tokens)
        self.shared.copy_(upload_short(values, self.device).view(self.shared.shape))
        saved = [
            (len(beginning.rows) - 1) * beginning.pages * page_size * token_bytes
            for beginnings, page_size, token_bytes in zip(groups, self.page_sizes, self._token_bytes, strict=True)
            for beginning in beginnings
        ]
        self.sharing = bool(saved) and sum(saved) >= self._least_saved

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
            at = upload(rows + columns + pages, self.device).view(3, -1)
            self.page_tables[group].index_put_((at[0], at[1]), at[2].int())


def _batches(new_rows: list[NewRow]) -> list[list[NewRow]]:
    """Rows that travel together, padded to the longest: all, or those whose lengths have as many binary digits."""
    lengths = [len(new.token_ids) for new in new_rows]
    if len(lengths) * max(lengths, default=0) - sum(lengths) <= MOST_PADDING:
        return [new_rows] if new_rows else []
    alike: dict[int, list[NewRow]] = {}
    for new, length in zip(new_rows, lengths, strict=True):
        alike.setdefault(length.bit_length(), []).append(new)
    return list(alike.values())
