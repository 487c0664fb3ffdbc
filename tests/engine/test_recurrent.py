"""Recurrent state in whole engines: conversations that are found again, preemption, chunks, memory."""

import random

import pytest

from quire import LLM, SamplingParams
from tests.engine.toy import make_toy, oracle
from tests.marks import need_dtype
from tests.models.checkpoints import make
from tests.tokenizer.samples import make_byte_bpe

pytestmark = pytest.mark.torch

SETTINGS = {
    "plain": {},
    "overlapped": {"async_scheduling": True},
    "chunks of 7": {"max_num_batched_tokens": 7, "max_num_seqs": 4, "async_scheduling": True},
    "pages of 5": {"block_size": 5},
    "no prefix cache": {"enable_prefix_caching": False, "async_scheduling": True},
    "preempting": {"num_gpu_blocks_override": 16, "max_model_len": 56, "async_scheduling": True},
}
GREEDY = {"temperature": 0.0, "ignore_eos": True}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("window", [None, 9])
def test_the_toy_folds_all_its_tokens(tmp_path, name, window):
    folder = make_toy(tmp_path, window=window, recurrent=True)
    head = [7, 8, 9] * 6
    prompts = [[*head, i] for i in range(4)] + [[i, i + 1, i + 2] * (i + 1) for i in range(5)] + [head]
    params = [SamplingParams(max_tokens=8 + 3 * i, **GREEDY) for i in range(len(prompts))]
    settings = {"num_gpu_blocks_override": 200, "block_size": 4, "kernels": "reference", **SETTINGS[name]}
    with LLM(str(folder), **settings) as llm:
        outputs = [*llm.generate(prompts, params), *llm.generate(prompts, params)]
        stats = llm._running().scheduler.stats()
    for prompt, p, output in zip(prompts * 2, params * 2, outputs, strict=True):
        assert output.outputs[0].token_ids == oracle(prompt, p.max_tokens, window=window, recurrent=True)
    assert (stats.preemptions > 0) == (name == "preempting")
    assert (stats.prefix_hits > 0) == (name != "no prefix cache")


def test_seeds_and_siblings_are_as_without_company(tmp_path):
    folder = make_toy(tmp_path, recurrent=True)
    params = SamplingParams(max_tokens=9, temperature=1.5, ignore_eos=True, seed=4, n=3)
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [2, 7, 1, 8]]
    with LLM(str(folder), num_gpu_blocks_override=100, block_size=4, enable_prefix_caching=False) as llm:
        together = [[c.token_ids for c in output.outputs] for output in llm.generate(prompts, params)]
        alone = [[c.token_ids for c in llm.generate([prompt], params)[0].outputs] for prompt in prompts]
    assert together == alone and together[0][0] != together[0][1]


@pytest.mark.parametrize("family", ["qwen3_5_text", "nemotron_h"])
def test_a_conversation_is_read_once(family, tmp_path):
    """Of what turns share, nine tenths and more come from the cache, and change no token."""
    make(family, tmp_path, max_position_embeddings=512)
    make_byte_bpe(tmp_path)
    rng = random.Random(2)
    settings = {"num_gpu_blocks_override": 120, "block_size": 4, "dtype": "float32", "kernels": "torch_native"}
    params = SamplingParams(max_tokens=14, **GREEDY)
    text, shared, hits = [rng.randrange(3, 97) for _ in range(40)], 0, []
    with LLM(str(tmp_path), **settings) as llm, LLM(str(tmp_path), enable_prefix_caching=False, **settings) as judge:
        for turn in range(6):
            shared += len(text) if turn else 0
            text += [rng.randrange(3, 97) for _ in range(7)]
            answer = llm.generate([text], params)[0]
            assert answer.outputs[0].token_ids == judge.generate([text], params)[0].outputs[0].token_ids
            hits.append(answer.num_cached_tokens)
            text += answer.outputs[0].token_ids
        counted = llm._running().scheduler.stats().prefix_hits
    assert sum(hits) == counted >= 0.9 * shared
    assert hits[0] == 0 and all(tokens % 4 == 0 for tokens in hits)


def test_states_take_the_memory_that_was_counted(tmp_path):
    need_dtype("bfloat16")
    make("granitemoehybrid", tmp_path)
    make_byte_bpe(tmp_path)
    given = 3_000_000
    with LLM(str(tmp_path), kv_cache_memory_bytes=given, block_size=4, dtype="bfloat16", max_num_seqs=8) as llm:
        runner = llm._running().executor.runner
        layout, states = runner.allocated.layout, runner.build.states
    recurrent, attention = layout.groups
    assert (recurrent.spec.recurrent, recurrent.layers, attention.layers) == (True, 2, 1)
    # 3 past inputs of 96 + 2 * 10 channels of 2 bytes; 8 heads of 12 by 10 values of 4 bytes.
    assert recurrent.spec.page_bytes(4) == 3 * 116 * 2 + 8 * 12 * 10 * 4
    counted = sum(group.spec.page_bytes(4) * group.layers * group.pages for group in layout.groups)
    held = [
        sum(pool.nbytes for pool in state.allocate(group.pages, 4))
        for group in layout.groups
        for state in states
        if state.spec == group.spec
    ]
    assert sum(held) == counted <= given < counted * 1.1
    # Eight sequences have two states each, and page 0 is nobody's.
    assert recurrent.pages > 16
