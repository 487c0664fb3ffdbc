"""Two ranks over gloo give what one gives: tokens, log-probabilities and random weights."""

import pytest

from quire import LLM, SamplingParams
from quire.base.errors import ConfigError
from tests.models.checkpoints import make
from tests.tokenizer.samples import make_byte_bpe

pytestmark = pytest.mark.multi

PROMPTS = [[5, 6, 7], list(range(3, 40)), [9] * 11]


def generate(folder, size, **settings):
    params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, logprobs=2)
    with LLM(str(folder), tensor_parallel_size=size, num_gpu_blocks_override=100, dtype="float32", **settings) as llm:
        return llm.generate(PROMPTS, params)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_two_ranks_equal_one(model_type, tmp_path):
    folder = make(model_type, tmp_path)
    make_byte_bpe(folder)
    one, two = generate(folder, 1), generate(folder, 2, async_scheduling=True, max_num_batched_tokens=8, max_num_seqs=4)
    for a, b in zip(one, two, strict=True):
        assert a.outputs[0].token_ids == b.outputs[0].token_ids
        assert a.outputs[0].cumulative_logprob == pytest.approx(b.outputs[0].cumulative_logprob, abs=1e-4)


def test_a_size_that_does_not_divide_is_refused(tmp_path):
    folder = make("llama", tmp_path)
    make_byte_bpe(folder)
    with pytest.raises(ConfigError, match="tensor_parallel_size=3"):
        generate(folder, 3)
