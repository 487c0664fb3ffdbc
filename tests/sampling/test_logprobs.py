"""Reported log-probabilities are those of the model's own logits, ranked without ambiguity."""

import pytest
import torch

from quire.messages.params import SamplingParams
from quire.sampling import batch
from quire.sampling.logprobs import prompt_logprobs
from tests.sampling.rig import Rig

pytestmark = pytest.mark.torch

VOCAB = 50
LOGITS = torch.randn(8, VOCAB, generator=torch.Generator().manual_seed(2)) * 3
EXPECTED = LOGITS.log_softmax(-1)


def test_logprobs_are_raw_whatever_shapes_the_draw():
    rig = Rig(VOCAB)
    changed = {"temperature": 0.3, "repetition_penalty": 2.0, "logit_bias": {4: 50.0}, "allowed_token_ids": [4, 5]}
    counts = [0, 1, 5, 20, 3, VOCAB, 2, 0]
    for row, count in enumerate(counts):
        rig.begin(row, SamplingParams(logprobs=count, **(changed if row % 2 else {})), seed=row)
    tokens, _, logprobs, _ = rig.sample(LOGITS, list(range(8)))
    for row, (token, count) in enumerate(zip(tokens, counts, strict=True)):
        entry, line = logprobs[row], EXPECTED[row]
        best = line.sort(descending=True)
        assert entry.ids == [token, *best.indices[:count].tolist()]
        assert entry.logprobs == line[entry.ids].tolist()
        assert entry.rank == best.indices.tolist().index(token) + 1


def test_only_rows_that_ask_get_them():
    rig = Rig(VOCAB)
    rig.begin(0, SamplingParams())
    rig.begin(5, SamplingParams(logprobs=0))
    _, _, logprobs, _ = rig.sample(LOGITS[:2], [0, 5])
    assert list(logprobs) == [5]
    assert len(logprobs[5].ids) == 1


def test_equal_tokens_are_ranked_by_id():
    logits = torch.zeros(4, 6)
    entries = prompt_logprobs(logits, torch.tensor([0, 3, 5, 1]), 4)
    assert [e.rank for e in entries] == [1, 4, 6, 2]
    assert all(e.ids[1:] == [0, 1, 2, 3] for e in entries)


@pytest.mark.parametrize("top", [0, 1, 7, VOCAB, VOCAB + 9])
def test_prompt_logprobs(top):
    targets = torch.arange(8, dtype=torch.int32) * 3
    for entry, target, line in zip(prompt_logprobs(LOGITS, targets, top), targets.tolist(), EXPECTED, strict=True):
        best = line.sort(descending=True).indices[:top].tolist()
        assert entry.ids == [target, *best]
        assert entry.logprobs == line[entry.ids].tolist()


def test_half_precision_logits_are_normalised_in_float32():
    half = LOGITS.bfloat16()
    [entry] = prompt_logprobs(half[:1], torch.tensor([3]), 0)
    assert entry.logprobs == half[:1].float().log_softmax(-1)[0, [3]].tolist()


def test_logprobs_in_slices_are_the_same(monkeypatch):
    def sampled():
        rig = Rig(VOCAB)
        for row in range(8):
            rig.begin(row, SamplingParams(logprobs=row), seed=row)
        return rig.sample(LOGITS, list(range(8)))

    whole = sampled()
    monkeypatch.setattr(batch, "SLICE_ROWS", 3)
    assert sampled() == whole
    assert len(whole[2]) == 8
