"""`LLM` on the toy model: every way of scheduling gives what the oracle says, and nothing is left behind."""

import gc
import random

import psutil
import pytest
import torch

from quire import LLM, SamplingParams
from quire.base.errors import ConfigError, EngineError, RequestError
from tests.engine.toy import make_toy, oracle

pytestmark = pytest.mark.torch

GREEDY = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module", params=[None, 9], ids=["full", "window"])
def toy(request, tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"), window=request.param), request.param


def prompts(count: int = 12, seed: int = 0) -> list[list[int]]:
    """Ragged prompts; every third shares a beginning with another."""
    rng = random.Random(seed)
    shared = [rng.randrange(400) for _ in range(40)]
    made = []
    for i in range(count):
        own = [rng.randrange(400) for _ in range(rng.randint(1, 60))]
        made.append(shared[: rng.randint(8, 40)] + own if i % 3 == 0 else own)
    return made


SETTINGS = {
    "plain": {},
    "chunked": {"max_num_batched_tokens": 7},
    "no prefix cache": {"enable_prefix_caching": False},
    "pages of 1": {"block_size": 1},
    "pages of 5": {"block_size": 5},
    "few rows": {"max_num_seqs": 2},
    "preempting": {"num_gpu_blocks_override": 24, "block_size": 4, "max_model_len": 92},
    "overlapped": {"async_scheduling": True},
    "overlapped, chunked, preempting": {
        "async_scheduling": True,
        "max_num_batched_tokens": 16,
        "num_gpu_blocks_override": 24,
        "block_size": 4,
        "max_model_len": 92,
    },
    "longest prefix first": {"scheduling_policy": "lpm", "max_num_seqs": 3},
    "priority": {"scheduling_policy": "priority", "max_num_seqs": 3},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_way_of_scheduling_equals_the_oracle(toy, name):
    folder, window = toy
    settings = {"num_gpu_blocks_override": 400, "block_size": 8, **SETTINGS[name]}
    given = [p[:60] for p in prompts()]
    rng = random.Random(1)
    lengths = [rng.randint(1, 30) for _ in given]
    with LLM(str(folder), **settings) as llm:
        params = [SamplingParams(max_tokens=n, **GREEDY) for n in lengths]
        outputs = llm.generate(given, params)
        again = llm.generate(given, params)
        stats = llm._running().scheduler.stats()
    for prompt, n, first, second in zip(given, lengths, outputs, again, strict=True):
        assert first.outputs[0].token_ids == oracle(prompt, n, window=window)
        assert second.outputs[0].token_ids == first.outputs[0].token_ids
        assert first.outputs[0].finish_reason == "length"
    assert (stats.running, stats.waiting, stats.kv_usage) == (0, 0, 0.0)
    if name.endswith("preempting"):
        assert stats.preemptions > 0, "the pool is so small that something must be preempted"
    if settings.get("enable_prefix_caching", True) and name == "plain":
        assert stats.prefix_hits > 0
        assert any(output.num_cached_tokens for output in again)


@pytest.mark.usefixtures("thawed")
def test_the_collector_is_held_while_an_engine_generates_and_free_afterwards(toy):
    def seen(past: object, logits: torch.Tensor) -> torch.Tensor:
        frozen.append(gc.get_freeze_count() > 0)
        return logits

    frozen, before = [], gc.get_threshold()
    with LLM(str(toy[0]), kv_cache_memory_bytes=1 << 20) as llm:
        params = SamplingParams(max_tokens=2, logits_processors=[seen], **GREEDY)
        llm.generate([[5]], params)
        assert (gc.get_freeze_count(), gc.get_threshold()) == (0, before)
        with pytest.raises(RequestError):
            llm.generate([[5], [5] * 10_000], params)
        assert (gc.get_freeze_count(), gc.get_threshold()) == (0, before)
    assert frozen == [True] * 2
    assert (gc.get_freeze_count(), gc.get_threshold()) == (0, before)


def test_stop_token_ends_a_sequence_and_is_reported(toy):
    folder, window = toy
    prompt = [5, 6, 7]
    expected = oracle(prompt, 20, window=window)
    stop = expected[6]
    with LLM(str(folder), kv_cache_memory_bytes=1 << 20) as llm:
        (output,) = llm.generate([prompt], SamplingParams(max_tokens=20, temperature=0, stop_token_ids=[stop]))
    ended = output.outputs[0]
    assert ended.token_ids == expected[: expected.index(stop) + 1]
    assert (ended.finish_reason, ended.stop_reason) == ("stop", stop)


def test_n_completions_share_the_prompt(toy):
    folder, window = toy
    prompt = list(range(50))
    with LLM(str(folder), kv_cache_memory_bytes=1 << 20, block_size=8) as llm:
        (output,) = llm.generate([prompt], SamplingParams(n=4, max_tokens=8, **GREEDY))
        assert llm._running().scheduler.stats().prefix_hits >= 3 * 48
    assert [c.index for c in output.outputs] == [0, 1, 2, 3]
    assert all(c.token_ids == oracle(prompt, 8, window=window) for c in output.outputs)


def test_one_bad_prompt_refuses_the_call_and_runs_nothing(toy):
    folder, _ = toy
    with LLM(str(folder), kv_cache_memory_bytes=1 << 20) as llm:
        with pytest.raises(RequestError, match="maximum context length"):
            llm.generate([[1, 2], [3] * 1000], SamplingParams(max_tokens=4))
        with pytest.raises(RequestError):
            llm.generate([[1, 100_000]], SamplingParams(max_tokens=4))
        with pytest.raises(ConfigError, match="2 prompts but 1"):
            llm.generate([[1], [2]], [SamplingParams()])
        assert not llm._running().busy


def test_a_stream_that_is_left_ends_its_request(toy):
    folder, window = toy
    with LLM(str(folder), kv_cache_memory_bytes=1 << 20) as llm:
        stream = llm.stream([1, 2, 3], SamplingParams(max_tokens=100, **GREEDY))
        seen: list[int] = []
        for output in stream:
            seen += output.outputs[0].token_ids
            if len(seen) >= 5:
                break
        stream.close()
        assert seen == oracle([1, 2, 3], len(seen), window=window)
        while llm._running().busy:
            llm._running().turn()
        assert llm._running().scheduler.stats().kv_usage == 0.0


def test_close_twice_then_refuse(toy):
    llm = LLM(str(toy[0]), kv_cache_memory_bytes=1 << 20)
    llm.close()
    llm.close()
    with pytest.raises(EngineError, match="closed"):
        llm.generate([[1]], SamplingParams(max_tokens=1))


def test_pages_are_sized_from_measured_memory(toy):
    with LLM(str(toy[0]), cpu_memory_utilization=0.001) as llm:
        groups = llm.facts.layout.groups
    taken = sum(g.pages * g.page_size * g.spec.bytes_per_token * g.layers for g in groups)
    assert 0 < taken <= 0.001 * psutil.virtual_memory().total
