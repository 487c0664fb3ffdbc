"""Triton's edits of logits and log-probabilities, over parts of a vocabulary, equal the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.ops.edit import edit_logits
from quire.ops.logprobs import token_logprobs
from quire.ops.registry import load_providers
from tests.ops.edits import random_edits
from tests.ops.triton import INTERPRETER, needs_interpreter

pytestmark = [pytest.mark.torch, needs_interpreter]
if INTERPRETER:
    load_providers(["triton"])
    from quire.kernels.triton.step import edit, logprobs

UNTOUCHED = -7.0
"""What memory holds before kernels write to it; no id or rank, and no likely value."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(edit, "PART", 32)
    monkeypatch.setattr(edit, "ENTRIES", 2)
    monkeypatch.setattr(logprobs, "PART", 16)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([17, 64, 90]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_edits_equal_the_reference(seed, vocab, dtype):
    arguments = random_edits(seed, vocab, dtype)
    before = arguments[0].clone()
    found = edit_logits.providers["triton"].function(*arguments)
    # Exactly: what top_k and top_p keep hangs on it.
    assert torch.equal(found, edit_logits(*arguments))
    assert torch.equal(arguments[0], before)


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
