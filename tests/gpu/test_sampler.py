"""On a real GPU the sampler draws what it draws on a CPU: equal noise, whose logarithms alone are rounded anew."""

from contextlib import nullcontext

import pytest
import torch

from quire.messages.params import SamplingParams
from quire.messages.plan import NewRow
from quire.sampling.rows import RowState
from tests.sampling.rig import CPU, Rig, assert_drawn_from, exact, no_waiting

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

VOCAB, ROWS, STEPS = 3000, 16, 8
CASES = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "top_k": {"top_k": 40},
    "large top_k": {"top_k": 1500, "top_p": 0.9},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.02},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2, "temperature": 1.5},
    "bias and allowed": {"logit_bias": {5: 3.0}, "allowed_token_ids": list(range(50))},
    "bans": {"temperature": 0.7, "min_tokens": 4, "stop_token_ids": [1, 2]},
    "callable": {"logits_processors": [lambda ids, logits: logits.roll(len(ids))]},
}


NUCLEI = {"top_p": 0.8}, {"top_k": 300, "top_p": 0.9, "temperature": 1.3}, {"min_p": 0.001}, {"top_k": 500}, {}


def drawn(params: SamplingParams, device: torch.device) -> list[list[int]]:
    """STEPS tokens of ROWS rows."""
    logits = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(1)) * 3
    rig = Rig(VOCAB, ROWS, device=device, providers=("triton", "torch_native") if device.type == "cuda" else ())
    for row in range(ROWS):
        rig.begin(row, params, seed=row, bad_words=((3, 7), (9,)))
    return [rig.step(logits.to(device), list(range(ROWS))) for _ in range(STEPS)]


@pytest.mark.parametrize("case", CASES)
def test_draws_equal_those_of_the_cpu(case):
    params = SamplingParams(**CASES[case])
    assert drawn(params, torch.device("cuda")) == drawn(params, CPU)


def held(device: torch.device) -> list[list[float]]:
    """What rows hold that began together, some of them again; the host never waits for the device meanwhile."""
    ways = [SamplingParams(**way) for way in CASES.values() if "logits_processors" not in way]
    ways += [SamplingParams(frequency_penalty=0.5), SamplingParams(logit_bias={2: -1.5}, repetition_penalty=0.8)]
    new = [
        NewRow(row, [row, 7, 7, 9, *[4, 4, row] * (row % 3)], 4, 0, [], ways[row % len(ways)], row, [], [], 99)
        for row in range(ROWS)
    ]
    state = RowState(ROWS, VOCAB, device)
    state.begin(*new[:5])
    with nullcontext() if device.type == "cpu" else no_waiting():
        state.end(1, 3)
        state.begin(*new[::-1])
        state.end(0, 4)
    tables = [table.slots.gather(torch.arange(ROWS, device=device)) for table in (state.counts, state.offsets)]
    return [table.double().flatten().tolist() for table in (*tables, state.table.numbers, state.table.integers)]


def test_rows_that_begin_together_hold_what_they_hold_on_a_cpu():
    on_cpu = held(CPU)
    assert held(torch.device("cuda")) == on_cpu
    assert len(set(on_cpu[0])) > 3, "prompts are marked, outputs counted"


@pytest.mark.parametrize("setting", NUCLEI, ids=str)
def test_draws_follow_the_exact_distribution(setting):
    params, vocab, rows = SamplingParams(**setting), 20_000, 512
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(5)) * 3
    rig = Rig(vocab, rows, device=torch.device("cuda"), providers=("triton",))
    for row in range(rows):
        rig.begin(row, params, seed=row)
    lines, tokens = logits.cuda().expand(rows, vocab).contiguous(), []
    for _ in range(60):
        tokens += rig.sample(lines, list(range(rows)))[0]
        rig.known += 1
    assert_drawn_from(tokens, exact(logits, params))


@pytest.mark.parametrize("provider", ["triton", "torch_native"])
def test_logprobs_and_bad_rows_arrive(provider):
    rig = Rig(VOCAB, device=torch.device("cuda"), providers=(provider,))
    logits = torch.randn(2, VOCAB, device="cuda")
    logits[1, 4] = torch.nan
    for row in (0, 1):
        rig.begin(row, SamplingParams(temperature=0.0, logprobs=3))
    tokens, bad, logprobs, errors = rig.sample(logits, [0, 1])
    best = logits[0].log_softmax(-1).topk(3)
    assert (tokens[1], bad, list(logprobs), errors) == (0, [1], [0], {})
    assert logprobs[0].ids[1:] == best.indices.tolist()
    assert logprobs[0].logprobs[1:] == pytest.approx(best.values.tolist(), abs=1e-5)
