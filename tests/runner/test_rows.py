"""Rows take in what a plan says, whatever stood in them before."""

import dataclasses

import pytest
import torch

from quire.messages.params import SamplingParams
from quire.messages.plan import Grant, NewRow, SharedPages, StepPlan
from quire.messages.state import GroupLayout, Layout, Retention, StateSpec
from quire.ops.samples import step_over
from quire.runner import upload
from quire.runner.rows import Rows

pytestmark = pytest.mark.torch

LAYOUT = Layout(
    [GroupLayout(StateSpec(8), 1, 4, 50), GroupLayout(StateSpec(8, Retention(window=5)), 1, 2, 50)], max_model_len=20
)


def new_row(row, tokens, computed=0, pages=((), ())):
    return NewRow(
        row, list(tokens), len(tokens), computed, [list(p) for p in pages], SamplingParams(), 0, [], [], len(tokens) + 4
    )


def test_new_rows_overwrite_all_that_stood_there():
    rows = Rows(3, 20, LAYOUT, torch.device("cpu"))
    for tensor in (rows.tokens, rows.known, rows.computed, *rows.page_tables):
        tensor.fill_(77)
    new = [new_row(2, range(1, 10), 4, ([5], [0, 6])), new_row(0, [8])]
    rows.apply(StepPlan(1, [], new, [Grant(2, 5, True, [[7, 9], [3]]), Grant(0, 1, True, [[4], [2]])]))
    assert rows.tokens[2].tolist() == [*range(1, 10)] + [0] * 12
    assert rows.tokens[0].tolist() == [8] + [0] * 20
    assert rows.known[[2, 0]].tolist() == [9, 1]
    assert rows.computed[[2, 0]].tolist() == [4, 0]
    assert [table[2].tolist() for table in rows.page_tables] == [[5, 7, 9, 0, 0], [0, 6, 3, *[0] * 7]]
    assert [table[0].tolist() for table in rows.page_tables] == [[4, 0, 0, 0, 0], [2, *[0] * 9]]
    for tensor in (rows.tokens, rows.known, rows.computed, *rows.page_tables):
        assert (tensor[[1, 3]] == 77).all(), "a row that nobody named was touched"


def test_a_long_prompt_among_short_ones_makes_nobody_send_as_much(monkeypatch):
    sent = []

    def note(values, device):
        sent.append(len(values))
        return upload.upload_short(values, device)

    monkeypatch.setattr("quire.runner.rows.upload_short", note)
    length, count = 20_000, 40
    rows = Rows(count + 1, length, Layout(LAYOUT.groups, length), torch.device("cpu"))
    new = [new_row(row, [row + 1] * 3) for row in range(count)] + [new_row(count, range(length))]
    rows.apply(StepPlan(1, [], new, []))
    assert sum(sent) < 2 * (length + 8 * count)
    assert rows.tokens[count, :length].tolist() == list(range(length))
    assert rows.tokens[:count, :4].tolist() == [[row + 1] * 3 + [0] for row in range(count)]
    assert rows.known.tolist() == [3] * count + [length, 0]


def test_only_groups_that_keep_all_tokens_are_told_who_begins_alike():
    rows = Rows(4, 20, LAYOUT, torch.device("cpu"))
    rows.apply(StepPlan(1, [], [], [], [[SharedPages([1, 3], 2)], []]))
    assert rows.sharing
    order = torch.tensor([3, rows.dummy, 0, 1])
    step = step_over([1] * 4, [9] * 4, [[1, 2, 3]] * 4, 4)
    whole, windowed = rows.shared_by(order, dataclasses.replace(step, groups=step.groups * 2)).groups
    assert whole.shared.number.tolist() == [0, -1, -1, 0]
    assert whole.shared.tokens.tolist() == [8, 0, 0, 8]
    assert windowed.shared is None
    rows.apply(StepPlan(2, [], [], []))
    assert rows.sharing, "what a plan does not mention stays"
    rows.apply(StepPlan(3, [], [], [], [[], []]))
    assert not rows.sharing


def test_on_an_accelerator_little_is_not_worth_reading_once(monkeypatch):
    rows = Rows(4, 20, LAYOUT, torch.device("cpu"))
    beginnings = [[SharedPages([0, 1, 3], 2)], []]
    # Two of three rows need not read two pages of four tokens of eight bytes.
    for least, worth in ((128, True), (129, False)):
        monkeypatch.setattr(rows, "_least_saved", least)
        rows.apply(StepPlan(1, [], [], [], beginnings))
        assert rows.sharing == worth
