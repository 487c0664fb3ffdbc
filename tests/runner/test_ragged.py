"""Recorded steps with prompts, played without a device's graphs: padding and reuse of buffers change nothing."""

from itertools import pairwise

import pytest

from quire import LLM, SamplingParams
from quire.config.step_sizes import GRAPH_TOKENS, graph_singles
from quire.runner.ragged import RaggedGraphs
from tests.engine.settings import resolved
from tests.engine.toy import make_toy, oracle

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("state", [{}, {"window": 9}, {"recurrent": True}], ids=str)
@pytest.mark.parametrize("pages", [200, 40], ids=["roomy", "preempting"])
@pytest.mark.parametrize("singles", [[0, 3, 8], [0]])
def test_padding_changes_nothing(tmp_path, monkeypatch, overlapped, state, pages, singles):
    resolved(monkeypatch, graph_rows=[4, 8], graph_singles=singles, graph_tokens=[3, 10, 25])
    played, forward = [], RaggedGraphs.forward

    def noted(self, room, grants):
        played.append((room, [grant.tokens for grant in grants]))
        return forward(self, room, grants)

    monkeypatch.setattr(RaggedGraphs, "forward", noted)
    prompts = [[i, i + 1, i + 2] * (2 * i + 1) for i in range(12)]
    params = [SamplingParams(max_tokens=3 + 2 * i, temperature=0.0, ignore_eos=True) for i in range(12)]
    settings = {"num_gpu_blocks_override": pages, "block_size": 4, "max_num_seqs": 8, "async_scheduling": overlapped}
    with LLM(str(make_toy(tmp_path, **state)), max_num_batched_tokens=24, **settings) as llm:
        outputs = llm.generate(prompts, params)
    for prompt, p, output in zip(prompts, params, outputs, strict=True):
        assert output.outputs[0].token_ids == oracle(prompt, p.max_tokens, **state)
    several = len(singles) > 1
    if "recurrent" in state:  # prompts are cut where pages end, which leaves single tokens in every step
        assert bool(played) >= several
    else:
        assert {room.tokens for room, _ in played} >= {25}
    if several and "recurrent" not in state:
        assert {room.singles for room, _ in played} >= {0, 8}
        assert any(counts[0] == 1 and counts[-1] > 1 for _, counts in played), "nobody decoded beside prompts"
    for room, counts in played:
        alone = sum(count == 1 for count in counts)
        assert alone <= room.singles and sum(counts) - alone <= room.tokens


def test_log_probabilities_of_prompts_need_every_state(tmp_path, monkeypatch):
    resolved(monkeypatch, graph_rows=[4], graph_singles=[0], graph_tokens=[25])
    with LLM(str(make_toy(tmp_path)), num_gpu_blocks_override=100, block_size=4) as llm:
        assert llm._running().scheduler.limits.recorded_tokens == 25
        (output,) = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=2, temperature=0.0, prompt_logprobs=1))
    assert len(output.prompt_logprobs) == 3


def test_rooms():
    assert graph_singles(1024) == [0, 16, 64, 256, 1024]
    assert graph_singles(256) == [0, 16, 64, 256]
    assert graph_singles(48) == [0, 16, 48]
    assert graph_singles(1) == [0, 1]
    # No prompt is padded by more than 256 tokens.
    assert max(b - a for a, b in pairwise(GRAPH_TOKENS)) <= 256
