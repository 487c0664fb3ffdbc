"""Draws follow the exact distribution, for each setting and for all of them together.

The many draws that this takes are those of the ops' references, which work on all rows at once. Kernels draw the same
tokens: of each setting a thousand are compared here, and cases of all kinds in tests/ops/test_draw.py.
"""

from itertools import pairwise

import pytest
import torch

from quire.kernels.torch_native import draw
from quire.messages.params import SamplingParams
from tests.sampling.rig import Rig, assert_drawn_from, exact

pytestmark = pytest.mark.torch

VOCAB, ROWS, DRAWS = 40, 1000, 20_000
BEGUN = 5_000
"""Draws where every one begins a row, which costs more than to draw."""
LOGITS = torch.randn(VOCAB, generator=torch.Generator().manual_seed(7)) * 2
TIES = LOGITS.round()
# Tokens that are drawn often, so that each of them that is not counted shows in few draws.
OUTPUT = (18, 18, 15, 28)

ADVANCING = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 2.0},
    "top_k": {"top_k": 5},
    "top_k of one less than all": {"top_k": VOCAB - 1},
    "top_k beyond the vocabulary": {"top_k": VOCAB + 60},
    "top_p": {"top_p": 0.7},
    "tiny top_p": {"top_p": 1e-9},
    "min_p": {"min_p": 0.1},
    "top_k, top_p": {"top_k": 9, "top_p": 0.8, "temperature": 1.5},
    "min_p, top_p": {"min_p": 0.05, "top_p": 0.85, "temperature": 1.3},
    "min_p, top_k": {"min_p": 0.02, "top_k": 12},
    "bias": {"logit_bias": {0: 3.5, 1: -100.0, 2: 1.0}},
    "allowed": {"allowed_token_ids": [3, 8, 20]},
    "bias, allowed, top_p": {"logit_bias": {3: 2.0}, "allowed_token_ids": [3, 8, 20, 21], "top_p": 0.9},
}
COUNTING = {
    "repetition": {"repetition_penalty": 1.8},
    "frequency": {"frequency_penalty": 0.7},
    "presence": {"presence_penalty": -1.2},
    "everything": {
        "repetition_penalty": 0.65,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.4,
        "logit_bias": {4: 2.5, 11: -1.0},
        "allowed_token_ids": list(range(25)),
        "temperature": 1.4,
        "min_p": 0.01,
        "top_k": 12,
        "top_p": 0.95,
    },
}


def draws(params: SamplingParams, logits: torch.Tensor, again: bool = False) -> list[int]:
    """DRAWS tokens, of many seeds, at many positions; BEGUN if rows begin `again` for each, as counts would grow."""
    rig, native = (Rig(len(logits), ROWS, providers=names) for names in ((), ("torch_native",)))
    rows = list(range(ROWS))
    lines = logits.expand(ROWS, -1)
    tokens = draw_first(rig, params, lines)
    assert tokens == draw_first(native, params, lines)
    for turn in range(1, (BEGUN if again else DRAWS) // ROWS):
        rig.known += 1
        if again:
            begin(rig, params, turn * ROWS)
        tokens += rig.sample(lines, rows)[0]
    return tokens


def draw_first(rig: Rig, params: SamplingParams, lines: torch.Tensor) -> list[int]:
    """Begin all rows, and draw a token for each."""
    begin(rig, params, 0)
    return rig.sample(lines, list(range(ROWS)))[0]


def begin(rig: Rig, params: SamplingParams, seed: int) -> None:
    """Begin all rows, with seeds from `seed` on."""
    for row in range(ROWS):
        rig.begin(row, params, output=OUTPUT, seed=seed + row)


@pytest.mark.parametrize("case", ADVANCING)
def test_draws_follow_the_exact_distribution(case):
    params = SamplingParams(**ADVANCING[case])
    assert_drawn_from(draws(params, LOGITS), exact(LOGITS, params, output=OUTPUT))


@pytest.mark.parametrize("case", COUNTING)
def test_penalties_shape_the_distribution(case):
    params = SamplingParams(**COUNTING[case])
    assert_drawn_from(draws(params, LOGITS, again=True), exact(LOGITS, params, output=OUTPUT))


@pytest.mark.parametrize("settings", [{"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.3}, {"top_k": 11, "top_p": 0.75}])
def test_ties_are_cut_by_id(settings):
    params = SamplingParams(**settings)
    assert_drawn_from(draws(params, TIES), exact(TIES, params))


def test_a_long_nucleus_follows_the_exact_distribution(monkeypatch):
    monkeypatch.setattr(draw, "FIRST", 1)
    monkeypatch.setattr(draw, "BLOCK", 4)
    params = SamplingParams(top_p=0.9)
    assert (exact(LOGITS, params) > 0).sum() > 4
    assert_drawn_from(draws(params, LOGITS), exact(LOGITS, params))


@pytest.mark.parametrize("settings", [{"top_k": 30}, {"top_p": 0.99}])
def test_a_large_vocabulary(settings):
    logits = torch.randn(2000, generator=torch.Generator().manual_seed(1)) * 3
    params = SamplingParams(**settings)
    assert_drawn_from(draws(params, logits), exact(logits, params))


def test_a_sequence_of_tokens_is_independent_of_its_past():
    """Pairs of successive tokens of one row, at noise alone, fill their cells evenly."""
    rig = Rig(4, ROWS, providers=())
    for row in range(ROWS):
        rig.begin(row, SamplingParams(), seed=row)
    logits = torch.zeros(ROWS, 4)
    turns = [rig.step(logits, list(range(ROWS))) for _ in range(41)]
    pairs = [a * 4 + b for before, after in pairwise(turns) for a, b in zip(before, after, strict=True)]
    assert_drawn_from(pairs, exact(torch.zeros(16), SamplingParams(), prompt=()))
