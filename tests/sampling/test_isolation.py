"""A row samples by its own logits, settings, history and seed, not by batch mates, row index, slices or the past."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quire.kernels.torch_native import draw
from quire.messages.params import SamplingParams
from quire.sampling import batch
from tests.sampling.rig import Rig
from tests.sampling.strategies import LOGITS, PARAMS, SEQUENCE, VOCAB

pytestmark = pytest.mark.torch

NAN, INF = float("nan"), float("inf")
BUSY = SamplingParams(logit_bias={0: 1.0}, frequency_penalty=0.5, repetition_penalty=1.5, top_p=0.5, min_p=0.1)
BATCHES = st.lists(st.tuples(SEQUENCE, LOGITS), min_size=2, max_size=6)


def alone(sequence, logits, row=0, turns=3):
    """What a sequence samples in a sampler of its own: (tokens, bad, logprobs, errors), three times."""
    rig = Rig(VOCAB)
    rig.begin(row, **sequence)
    return [turn_of(rig, torch.tensor([logits]), [row])[row] for _ in range(turns)]


def turn_of(rig, logits, rows):
    """One step with appending. Returns by row: token, bad, logprobs, error."""
    at = torch.tensor(rows)
    samples = rig.sampler.sample(logits, rows, at, rig.history, rig.known)
    rig.history[at, rig.known[at].long()] = samples.tokens.int()
    rig.known[at] += 1
    tokens, bad, logprobs, errors = samples.to_host()
    return {r: (t, r in bad, logprobs.get(r), errors.get(r)) for r, t in zip(rows, tokens, strict=True)}


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.randoms(use_true_random=False))
def test_batch_mates_and_row_change_nothing(sequences, random):
    rows = random.sample(range(8), len(sequences))
    rig = Rig(VOCAB)
    for row, (sequence, _) in zip(rows, sequences, strict=True):
        rig.begin(row, **sequence)
    logits = torch.tensor([x for _, x in sequences])
    turns = [turn_of(rig, logits, rows) for _ in range(3)]
    for row, (sequence, line) in zip(rows, sequences, strict=True):
        assert [turn[row] for turn in turns] == alone(sequence, line)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SEQUENCE, LOGITS), max_size=4), SEQUENCE, LOGITS)
def test_nothing_remains_of_a_row_s_last_user(past, sequence, logits):
    rig = Rig(VOCAB)
    rig.begin(5, BUSY, bad_words=((1,),))  # uses every table, so that all of them are read for row 3, too
    for before, line in past:
        rig.begin(3, **before)
        turn_of(rig, torch.tensor([line]), [3])
        rig.sampler.end(3)
    rig.begin(3, **sequence)
    lines = torch.tensor([logits, [0.0] * VOCAB])
    assert [turn_of(rig, lines, [3, 5])[3] for _ in range(3)] == alone(sequence, logits)


@settings(max_examples=40, deadline=None)
@given(SEQUENCE, LOGITS)
def test_a_sequence_returns_after_preemption_as_if_it_had_stayed(sequence, logits):
    stayed = alone(sequence, logits, turns=4)
    assume(not any(error for _, _, _, error in stayed))
    generated = (*sequence["output"], *(token for token, *_ in stayed[:2]))
    assert alone({**sequence, "output": generated}, logits, turns=2) == stayed[2:]


@settings(max_examples=150, deadline=None)
@given(SEQUENCE, LOGITS)
def test_every_sample_is_allowed_or_an_error(sequence, logits):
    params = sequence["params"]
    known = [*sequence["prompt"], *sequence["output"]]
    generated = len(sequence["output"])
    banned = {w[-1] for w in sequence["bad_words"] if known[len(known) - len(w) + 1 :] == list(w[:-1]) or len(w) == 1}
    if generated < params.min_tokens:
        banned |= {*sequence["eos"], *(params.stop_token_ids or [])}
    allowed = set(params.allowed_token_ids or range(VOCAB)) - banned
    allowed -= {i for i, x in enumerate(logits) if x == -INF}
    [(token, bad, logprobs, error)] = alone(sequence, logits, turns=1)
    assert not bad
    if error is None:
        assert token in allowed
    else:
        assert "no token is left" in error
        # Only an overflow of float32 can exclude a token that the rules leave.
        assert not allowed or max(abs(logits[i]) for i in allowed) > 1e6 or params.repetition_penalty == 1e30
    if logprobs is not None:
        assert all(value <= 1e-6 for value in logprobs.logprobs)


@settings(max_examples=40, deadline=None)
@given(BATCHES, st.sampled_from([NAN, INF, "all -inf"]), st.integers(0, VOCAB - 1))
def test_a_bad_row_harms_only_itself(sequences, poison, at):
    rows = list(range(len(sequences)))
    rig, clean = Rig(VOCAB), Rig(VOCAB)
    for row, (sequence, _) in enumerate(sequences):
        rig.begin(row, **sequence)
        clean.begin(row, **sequence)
    logits = torch.tensor([x for _, x in sequences])
    poisoned = logits.clone()
    if poison == "all -inf":
        poisoned[1] = -INF
    else:
        poisoned[1, at] = poison
    expected, found = turn_of(clean, logits, rows), turn_of(rig, poisoned, rows)
    assert found.pop(1)[:3] == (0, True, None)
    expected.pop(1)
    assert found == expected


@settings(max_examples=30, deadline=None)
@given(BATCHES)
def test_slices_change_nothing(sequences):
    rows = list(range(len(sequences)))
    logits = torch.tensor([x for _, x in sequences])
    turns = []
    for entries in (batch.SLICE_ENTRIES, VOCAB, 2 * VOCAB):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch, "SLICE_ENTRIES", entries)
            rig = Rig(VOCAB)
            for row, (sequence, _) in enumerate(sequences):
                rig.begin(row, **sequence)
            turns.append(turn_of(rig, logits, rows))
    assert turns[0] == turns[1] == turns[2]


def test_the_length_of_another_row_s_nucleus_changes_nothing(monkeypatch):
    monkeypatch.setattr(draw, "FIRST", 1)
    monkeypatch.setattr(draw, "BLOCK", 4)
    params = SamplingParams(top_p=0.9)
    sharp = torch.zeros(VOCAB)
    sharp[5:8] = 9.0
    flat = torch.zeros(VOCAB)
    for seed in range(50):
        rig = Rig(VOCAB)
        rig.begin(0, params, seed=seed)
        rig.begin(1, params, seed=99)
        both = rig.sample(torch.stack([sharp, flat]), [0, 1])[0]
        assert both[0] == rig.sample(sharp.unsqueeze(0), [0])[0][0]
        assert both[1] == rig.sample(flat.unsqueeze(0), [1])[0][0]


@settings(max_examples=60, deadline=None)
@given(PARAMS, LOGITS, st.integers(0, 2**64 - 1))
def test_logits_are_not_changed_and_half_precision_is_taken(params, logits, seed):
    rig = Rig(VOCAB)
    rig.begin(0, params, seed=seed)
    line = torch.tensor([logits]).clamp(min=-1e30, max=1e30).bfloat16()
    before = line.clone()
    found = rig.sampler.sample(line, [0], torch.tensor([0]), rig.history, rig.known).to_host()
    assert torch.equal(line, before)
    rig.begin(0, params, seed=seed)
    single = line.float()
    assert rig.sampler.sample(single, [0], torch.tensor([0]), rig.history, rig.known).to_host() == found
    assert torch.equal(single, before.float())


def test_a_row_that_has_not_begun_is_a_mistake_of_the_caller():
    rig = Rig(VOCAB)
    rig.begin(0, SamplingParams())
    rig.sampler.end(0)
    with pytest.raises(AssertionError, match="row 0"):
        rig.sample(torch.zeros(1, VOCAB), [0])


@pytest.mark.parametrize("last", ["bad_words", "min_tokens", "bias", "allowed", "frequency", "repetition"])
def test_the_next_user_of_a_row_is_free_of(last):
    """The last user's setting forbids the best token; the next user has settings of its own that do not."""
    best = 9
    settings = {
        "bad_words": {"params": SamplingParams(), "bad_words": ((best,),)},
        "min_tokens": {"params": SamplingParams(min_tokens=9, stop_token_ids=[best])},
        "bias": {"params": SamplingParams(logit_bias={best: -100.0})},
        "allowed": {"params": SamplingParams(allowed_token_ids=[1])},
        "frequency": {"params": SamplingParams(frequency_penalty=2.0), "output": (best,) * 9},
        "repetition": {"params": SamplingParams(repetition_penalty=50.0), "output": (best,)},
    }[last]
    rig = Rig(VOCAB)
    rig.begin(5, BUSY, bad_words=((1,),))
    rig.begin(3, **settings)
    logits = torch.zeros(2, VOCAB)
    logits[0, best], logits[0, 2] = 5.0, 4.5
    rig.sample(logits, [3, 5])
    rig.sampler.end(3)
    # Each of these settings has the row read the tables, and none of them changes the best token.
    harmless = SamplingParams(
        temperature=0.0, logit_bias={0: 1.0}, frequency_penalty=0.1, repetition_penalty=1.1, presence_penalty=0.1
    )
    rig.begin(3, harmless, prompt=(1,))
    assert rig.sample(logits, [3, 5])[0][0] == best
