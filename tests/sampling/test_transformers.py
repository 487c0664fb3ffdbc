"""Logits after each processor equal those of transformers, where both mean the same."""

import pytest
import torch
from transformers import generation

from quire.messages.params import SamplingParams
from quire.messages.plan import NewRow
from quire.ops.edit import edit_logits
from quire.ops.topk import candidates, drop_improbable, kept, mass
from quire.sampling.rows import RowState
from tests.sampling.rig import CPU

pytestmark = pytest.mark.torch

VOCAB = 60
LOGITS = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(3)) * 4
PROMPT, OUTPUT = [5, 6, 7, 5], [9, 5, 9, 11]


def edited(params, *, eos=(), bad_words=(), output=OUTPUT):
    """Our logits after the processors."""
    state = RowState(2, VOCAB, CPU)
    state.begin(NewRow(1, PROMPT + output, len(PROMPT), 0, [], params, 0, list(eos), [list(w) for w in bad_words], 99))
    history = torch.zeros(2, 20, dtype=torch.int32)
    history[1, : len(PROMPT + output)] = torch.tensor(PROMPT + output, dtype=torch.int32)
    known = torch.tensor([0, len(PROMPT + output)], dtype=torch.int32)
    features = state.host[1].features
    assert features
    return edit_logits(LOGITS, torch.tensor([1]), state.table, state.tables(features), history, known)


def theirs(processor, output=OUTPUT):
    return processor(torch.tensor([PROMPT + output]), LOGITS.clone())


@pytest.mark.parametrize("penalty", [0.1, 0.7, 1.3, 5.0])
def test_repetition_penalty(penalty):
    found = edited(SamplingParams(repetition_penalty=penalty))
    assert torch.equal(found, theirs(generation.RepetitionPenaltyLogitsProcessor(penalty)))


@pytest.mark.parametrize("output", [[9, 5, 9, 11], [1, 2], [2, 1, 3], []])
def test_bad_words(output):
    words = [[9, 11, 4], [11, 8], [7], [1, 2, 3], [2, 30], [5, 6, 7, 5, 44], [5, 13]]
    found = edited(SamplingParams(), bad_words=words, output=output)
    assert torch.equal(found, theirs(generation.NoBadWordsLogitsProcessor(words, eos_token_id=0), output))


@pytest.mark.parametrize("minimum", [3, 4, 5])
def test_min_tokens(minimum):
    found = edited(SamplingParams(min_tokens=minimum, stop_token_ids=[40, 2]), eos=[3])
    processor = generation.MinNewTokensLengthLogitsProcessor(len(PROMPT), minimum, [40, 2, 3], device="cpu")
    assert torch.equal(found, theirs(processor))


def test_logit_bias():
    found = edited(SamplingParams(logit_bias={3: 7.5, 50: -100.0}))
    assert torch.equal(found, theirs(generation.SequenceBiasLogitsProcessor([[[3], 7.5], [[50], -100.0]])))


def test_bias_comes_before_the_repetition_penalty():
    found = edited(SamplingParams(logit_bias={5: 9.0}, repetition_penalty=1.7))
    chain = [
        generation.SequenceBiasLogitsProcessor([[[5], 9.0]]),
        generation.RepetitionPenaltyLogitsProcessor(1.7),
    ]
    assert torch.equal(found, generation.LogitsProcessorList(chain)(torch.tensor([PROMPT + OUTPUT]), LOGITS.clone()))


def scaled(heat: float = 1.0) -> torch.Tensor:
    return (LOGITS - LOGITS.amax()) / heat


def kept_ids(top_k: int, top_p: float, width: int, whole: bool = False, heat: float = 1.0) -> set[int]:
    x = scaled(heat)
    values, ids = candidates(x, width)
    total = mass(x).sum(-1, keepdim=True) if whole else None
    mask, _ = kept(values, torch.tensor([[top_k]]), torch.tensor([[top_p]]), total)
    return set(ids[mask].tolist())


def theirs_kept(*warpers) -> set[int]:
    x = generation.LogitsProcessorList(warpers)(torch.tensor([PROMPT]), LOGITS.clone())
    return set((x > -torch.inf).nonzero()[:, 1].tolist())


@pytest.mark.parametrize("top_k", [1, 2, 17, 60])
def test_top_k(top_k):
    expected = theirs_kept(generation.TopKLogitsWarper(top_k))
    assert kept_ids(top_k, 1.0, top_k) == expected
    assert kept_ids(top_k, 1.0, VOCAB) == expected


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.99, 0.9999])
def test_top_p(top_p):
    expected = theirs_kept(generation.TopPLogitsWarper(top_p))
    assert kept_ids(VOCAB, top_p, VOCAB) == expected
    assert kept_ids(VOCAB, top_p, VOCAB, whole=True) == expected


@pytest.mark.parametrize("top_k, top_p", [(5, 0.6), (30, 0.8), (30, 0.95), (3, 0.5)])
def test_top_p_refers_to_what_top_k_leaves(top_k, top_p):
    warpers = [
        generation.TemperatureLogitsWarper(8.0),
        generation.TopKLogitsWarper(top_k),
        generation.TopPLogitsWarper(top_p),
    ]
    expected = theirs_kept(*warpers)
    assert len(expected) < top_k
    assert kept_ids(top_k, top_p, top_k, heat=8.0) == expected
    assert kept_ids(top_k, top_p, VOCAB, heat=8.0) == expected


def test_candidates_are_in_order_and_equal_ones_by_id():
    x = torch.tensor([[-1.0, 0.0, -0.0, 3.0, 0.0, -torch.inf, -1.0, -3e38, 1e-30, -1e-30]])
    order = [3, 8, 1, 2, 4, 9, 0, 6, 7, 5]
    for width in (1, 4, 9, 10):
        values, ids = candidates(x, width)
        assert ids.tolist() == [order[:width]]
        assert torch.equal(values, x[:, order[:width]])


@pytest.mark.parametrize("min_p", [0.001, 0.1, 0.6, 1.0])
def test_min_p(min_p):
    found = drop_improbable(scaled(), torch.tensor([[min_p]]).log())
    assert set((found > -torch.inf).nonzero()[:, 1].tolist()) == theirs_kept(generation.MinPLogitsWarper(min_p))
