"""Draws and edits by the compiled CPU kernels over many blocks of logits, for each set of instructions there is."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.ops.draw import SEED, RowTable, draw_tokens, sample_table
from quire.ops.edit import edit_logits
from quire.ops.noise import GOLDEN, log_exponential, row_keys
from quire.ops.registry import load_providers
from tests.marks import needs_native
from tests.ops.edits import random_edits

pytestmark = [pytest.mark.torch, needs_native]
SETTING = st.tuples(
    st.sampled_from([0.0, 0.3, 1.0]),  # temperature
    st.sampled_from([0, 1, 7, 50, 600]),  # top_k
    st.sampled_from([0.0, 0.3, 0.95, 1.0]),  # top_p
    st.sampled_from([0.0, 0.02]),  # min_p
)


def drawn(logits: torch.Tensor, table, provider: str = "cpu", first: int = 0) -> torch.Tensor:
    """The tokens of rows at positions from `first` on."""
    rows = torch.arange(len(logits))
    return draw_tokens.providers[provider].function(logits, rows, (rows + first).int(), table)


@settings(max_examples=20)
@given(
    st.lists(SETTING, min_size=1, max_size=4),
    st.sampled_from([640, 5000, 12_345]),
    st.sampled_from([0.1, 1.0, 8.0]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 10_000),
)
def test_tokens_equal_those_of_the_reference(
    instructions: str,
    lines: list[tuple[float, int, float, float]],
    vocab: int,
    width: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    table = sample_table(vocab, *map(list, zip(*lines, strict=True)))
    logits = torch.randn(len(lines), vocab, generator=torch.Generator().manual_seed(seed)) * width
    logits = logits.to(dtype)
    assert torch.equal(drawn(logits, table, "cpu", seed), drawn(logits, table, "reference", seed))


def test_a_batch_changes_no_row(instructions: str) -> None:
    """The threads share rows out; a row alone is drawn as among others, and one that is lost disturbs nobody."""
    logits = torch.randn(9, 3000, generator=torch.Generator().manual_seed(1)) * 3
    logits[4, 1234] = torch.nan
    table = sample_table(3000, [0.8] * 9, [0, 20, 0] * 3, [1.0, 0.9, 0.9] * 3, [0.0] * 9)
    known = torch.arange(9, dtype=torch.int32)
    function = draw_tokens.providers["cpu"].function
    whole = function(logits, torch.arange(9), known, table)
    alone = [function(logits[i : i + 1], torch.tensor([i]), known, table) for i in range(9)]
    assert torch.equal(whole, torch.cat(alone, 1))
    assert whole[:, 4].tolist() == [0, 1]


def test_the_highest_noise_there_is_wins(instructions: str) -> None:
    """That of a token whose 31 bits are all zero, ahead by less than one more bit would bring."""
    vocab, likely, lucky = 640, 5, 300
    table = sample_table(vocab, [1.0], [0], [1.0], [0.0])
    # The seed whose keys at position 0 are the token and zero: then nothing is mixed but zeros.
    state = seed_of(lucky) - GOLDEN & (1 << 64) - 1
    table.integers[0, SEED] = state - (state >> 63 << 64)
    noise = -log_exponential(row_keys(table.integers[:, SEED], torch.zeros(1).long()), torch.arange(vocab).int())
    assert noise[0, lucky] > 22.1
    logits = torch.full((1, vocab), -100.0)
    logits[0, likely], logits[0, lucky] = 0, noise[0, likely] - 21.8
    assert drawn(logits, table, "reference")[0].tolist() == drawn(logits, table)[0].tolist() == [lucky]


def seed_of(key: int) -> int:
    """What splitmix64's finaliser makes `key` of."""
    for shift, factor in ((31, 1), (27, 0x94D049BB133111EB), (30, 0xBF58476D1CE4E5B9)):
        key = key * pow(factor, -1, 1 << 64) & (1 << 64) - 1
        key ^= key >> shift ^ key >> 2 * shift
    return key


def test_draws_from_long_nuclei_equal_those_of_the_reference(instructions: str) -> None:
    """Winners outside are taken back however often it takes; of a row alone by all threads at once."""
    function, rows = draw_tokens.providers["cpu"].function, torch.arange(3)
    logits, draws = long_nuclei()
    for first, (table, wanted) in enumerate(draws):
        assert torch.equal(drawn(logits, table, "cpu", first), wanted)
        alone = [function(logits[i : i + 1], rows[i : i + 1], (rows + first).int(), table) for i in rows.tolist()]
        assert torch.equal(torch.cat(alone, 1), wanted)


@cache
def long_nuclei() -> tuple[torch.Tensor, list[tuple[RowTable, torch.Tensor]]]:
    """Three rows of logits, and settings and the reference's tokens at many positions: few draws come near an end."""
    vocab, seeds, shares = 40_000, torch.Generator().manual_seed(2), [0.1, 0.5, 0.9]
    logits = torch.randn(3, vocab, generator=seeds) * torch.tensor([[0.3], [1.0], [4.0]])
    tables = [sample_table(vocab, [1.0] * 3, [0] * 3, shares[i:] + shares[:i], [0.0] * 3) for i in range(3)]
    draws = [(tables[first % 3], drawn(logits, tables[first % 3], "reference", first)) for first in range(64)]
    return logits, draws


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (12, 1.0), (0, 0.7)])
def test_tokens_come_as_often_as_their_probability_says(top_k: int, top_p: float) -> None:
    """A chi-square test over 40 tokens, spread over as many blocks; seeds are fixed, so it does not flicker."""
    from scipy.stats import chisquare

    load_providers(["cpu"])
    count, places = 4000, torch.arange(40) * 300 + 17
    logits = torch.full((12_100,), -30.0)
    logits[places] = torch.linspace(2, -2, 40)
    table = sample_table(len(logits), [0.9] * count, [top_k] * count, [top_p] * count, [0.0] * count)
    tokens = drawn(logits.expand(count, -1), table)[0]
    share = (logits[places] / 0.9).softmax(0).double()
    kept = torch.arange(40) < (top_k or 40)
    kept &= (share.cumsum(0) - share) < top_p
    wanted = share[kept] / share[kept].sum() * count
    found = torch.stack([(tokens == place).sum() for place in places[kept]])
    assert int(found.sum()) == count
    assert chisquare(found, wanted).pvalue > 0.001


@settings(max_examples=48)
@given(st.integers(0, 10_000), st.sampled_from([17, 90, 20_005]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_edits_equal_those_of_the_reference(instructions: str, seed: int, vocab: int, dtype: torch.dtype) -> None:
    arguments = random_edits(seed, vocab, dtype)
    logits = arguments[0]
    logits[0, 3], logits[1, 5:9], logits[2, -1] = torch.inf, torch.nan, -torch.inf
    before = logits.clone()
    found = edit_logits.providers["cpu"].function(*arguments)
    # Exactly: what top_k and top_p keep hangs on it.
    torch.testing.assert_close(found, edit_logits(*arguments), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)
