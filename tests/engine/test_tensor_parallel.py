"""Two ranks over gloo give what one gives: tokens, log-probabilities and random weights."""

import psutil
import pytest

from quire import LLM, SamplingParams
from quire.base.errors import ConfigError, EngineError
from quire.executors import processes
from tests.models.checkpoints import make
from tests.tokenizer.samples import make_byte_bpe

pytestmark = pytest.mark.multi

PROMPTS = [[5, 6, 7], list(range(3, 40)), [9] * 11]


def generate(folder, size, **settings):
    params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, logprobs=2)
    with LLM(str(folder), tensor_parallel_size=size, num_gpu_blocks_override=100, dtype="float32", **settings) as llm:
        return llm.generate(PROMPTS, params)


def test_two_ranks_equal_one(tmp_path):
    folder = make("gemma2", tmp_path)
    make_byte_bpe(folder)
    one, two = generate(folder, 1), generate(folder, 2, async_scheduling=True, max_num_batched_tokens=8, max_num_seqs=4)
    for a, b in zip(one, two, strict=True):
        assert a.outputs[0].token_ids == b.outputs[0].token_ids
        assert a.outputs[0].cumulative_logprob == pytest.approx(b.outputs[0].cumulative_logprob, abs=1e-4)


def test_a_size_that_does_not_divide_is_refused(tmp_path):
    folder = make("llama", tmp_path, num_attention_heads=3, num_key_value_heads=3)
    make_byte_bpe(folder)
    with pytest.raises(ConfigError, match="tensor_parallel_size=2 does not divide"):
        generate(folder, 2)


def test_a_rank_that_dies_ends_the_engine(tmp_path):
    folder = make("llama", tmp_path)
    make_byte_bpe(folder)
    params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    before = set(psutil.Process().children())
    with LLM(str(folder), tensor_parallel_size=2, num_gpu_blocks_override=100, dtype="float32") as llm:
        ranks = [child for child in psutil.Process().children() if child not in before]
        assert len(ranks) == 2
        ranks[1].kill()
        with pytest.raises(EngineError):
            llm.generate(PROMPTS, params)
    assert not any(rank.is_running() for rank in ranks)


def test_a_rank_that_cannot_be_begun_leaves_none_behind(tmp_path, monkeypatch):
    folder = make("llama", tmp_path)
    make_byte_bpe(folder)
    begun, start = [], processes.subprocess.Popen

    def fail_at_second(*args, **named):
        if begun:
            raise OSError("no more processes")
        begun.append(start(*args, **named))
        return begun[0]

    monkeypatch.setattr(processes.subprocess, "Popen", fail_at_second)
    with pytest.raises(OSError, match="no more processes"):
        generate(folder, 2)
    assert begun[0].poll() is not None, "it has ended, and was waited for"
