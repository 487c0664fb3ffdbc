"""Triton's edits of logits and log-probabilities, over parts of a vocabulary, equal the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.ops.draw import FREQUENCY, PRESENCE, REPETITION, sample_table
from quire.ops.edit import ANY_TOKEN, FOREVER, IN_PROMPT, BanTable, EditTables, Slots, edit_logits
from quire.ops.logprobs import token_logprobs
from quire.ops.registry import load_providers
from tests.ops.triton import INTERPRETER, needs_interpreter

pytestmark = [pytest.mark.torch, needs_interpreter]
if INTERPRETER:
    load_providers(["triton"])
    from quire.kernels.triton.step import edit, logprobs

ROWS = 4
UNTOUCHED = -7.0
"""What memory holds before kernels write to it; no id or rank, and no likely value."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(edit, "PART", 32)
    monkeypatch.setattr(edit, "ENTRIES", 2)
    monkeypatch.setattr(logprobs, "PART", 16)


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


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([17, 64, 90]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_edits_equal_the_reference(seed, vocab, dtype):
    generator = torch.Generator().manual_seed(seed)
    table = sample_table(vocab, [0.0] * ROWS, [0] * ROWS, [1.0] * ROWS, [0.0] * ROWS)
    for column, choices in ((REPETITION, [1.0, 1.3, 0.5, 1e30]), (FREQUENCY, [0.0, 0.7]), (PRESENCE, [0.0, -1.5])):
        table.numbers[:, column] = torch.tensor(choices)[torch.randint(len(choices), (ROWS,), generator=generator)]
    counts = torch.randint(0, 3, (ROWS, vocab), generator=generator, dtype=torch.int32)
    counts |= torch.randint(0, 2, (ROWS, vocab), generator=generator, dtype=torch.int32) * IN_PROMPT
    offsets = torch.randn(ROWS, vocab, generator=generator).masked_fill_(counts == 1, -torch.inf)
    counts[0], offsets[0] = 0, 0
    of_row = torch.randint(0, ROWS, (2, ROWS), generator=generator)
    parts = {
        "offsets": Slots(offsets, of_row[0]),
        "counts": Slots(counts, of_row[1]),
        "bans": random_bans(generator, vocab),
        "masks": torch.randint(-(1 << 31), 1 << 31, (ROWS, -(-vocab // 32)), generator=generator).int(),
    }
    tables = EditTables(**{name: part for i, (name, part) in enumerate(parts.items()) if (seed >> i) & 1})
    logits = (torch.randn(3, vocab, generator=generator) * 4).to(dtype)
    before = logits.clone()
    history = torch.randint(0, 3, (ROWS, 8), generator=generator, dtype=torch.int32)
    known = torch.randint(1, 6, (ROWS,), generator=generator, dtype=torch.int32)
    arguments = (logits, torch.randperm(ROWS, generator=generator)[:3], table, tables, history, known)
    found = edit_logits.providers["triton"].function(*arguments)
    # Exactly: what top_k and top_p keep hangs on it.
    assert torch.equal(found, edit_logits(*arguments))
    assert torch.equal(logits, before)


@settings(max_examples=12)
@given(
    st.integers(0, 10_000),
    st.sampled_from([17, 64, 90]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([0, 1, 5, 30, 90]),
)
def test_logprobs_equal_the_reference(seed, vocab, dtype, top):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(3, vocab, generator=generator) * 4).to(dtype)
    logits[1] = logits[1].round()
    logits[2, torch.randperm(vocab, generator=generator)[: vocab // 2]] = -torch.inf
    chosen = torch.randint(0, vocab, (3,), generator=generator)
    want = token_logprobs(logits, chosen, top)
    found = token_logprobs.providers["triton"].function(logits, chosen, top)
    assert torch.equal(found.ids, want.ids)
    assert torch.equal(found.ranks, want.ranks)
    torch.testing.assert_close(found.values, want.values, rtol=1e-6, atol=1e-5)
    wanted = torch.tensor([top, -1, top // 2], dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda *size, **how: torch.full(size, UNTOUCHED, **how))
        asked = token_logprobs.providers["triton"].function(logits, chosen, top, wanted)
    for row, count in ((0, top), (2, top // 2)):
        assert torch.equal(asked.ids[row, : 1 + count], found.ids[row, : 1 + count])
        assert torch.equal(asked.values[row, : 1 + count], found.values[row, : 1 + count])
        assert asked.ranks[row] == found.ranks[row]
    if min(top, vocab) <= logprobs.MOST:
        rest = [asked.ids[1], asked.values[1], asked.ranks[1]]
        rest += [described[2, 1 + top // 2 :] for described in (asked.ids, asked.values)]
        assert all((x == UNTOUCHED).all() for x in rest), "work that nobody asked for"


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_lost_row_has_nan_and_its_neighbours_do_not(poison):
    logits = torch.randn(3, 90)
    logits[1, 40] = poison
    found = token_logprobs.providers["triton"].function(logits, torch.tensor([1, 2, 3]), 4)
    assert found.values[1].isnan().all()
    assert found.values[[0, 2]].isfinite().all()
